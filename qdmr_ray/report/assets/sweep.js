"use strict";
// A sweep's page: what belongs to one trial is shown together in every chart and table, and ranges
// of the parallel coordinates select trials in all of them.
(() => {
  const byTrial = new Map();
  for (const found of document.querySelectorAll("[data-trial]")) {
    byTrial.set(found.dataset.trial, [...(byTrial.get(found.dataset.trial) ?? []), found]);
  }

  // ---------------------------------------------------------------- showing one trial
  let shown = null, kept = null;
  const show = (id) => {
    if (id === shown) return;
    for (const found of byTrial.get(shown) ?? []) found.classList.remove("shown");
    for (const found of byTrial.get(id) ?? []) found.classList.add("shown");
    document.body.classList.toggle("one-shown", id !== null);
    shown = id;
  };
  const trialOf = (target) => target.closest("[data-trial]")?.dataset.trial ?? null;
  document.addEventListener("pointerover", (event) => show(trialOf(event.target) ?? kept));
  document.addEventListener("click", (event) => {
    if (event.target.closest("button, a, summary, input, select, label")) return;
    const id = trialOf(event.target);
    kept = id === kept ? null : id;
    show(kept);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    kept = null;
    show(null);
  });

  // On paper nothing can be opened.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  // ---------------------------------------------------------------- selecting ranges
  const parallel = document.querySelector("#parallel svg[role=img]");
  if (!parallel) return;
  const threads = [...parallel.querySelectorAll(".thread")].map((thread) =>
    [thread.dataset.trial, thread.dataset.places.split(" ").map(Number)]);
  const ranges = new Map();
  const CLICK = 3; // a shorter way than this, in the SVG's units, is a click

  const select = () => {
    const selected = new Set(threads.filter(([, places]) =>
      [...ranges].every(([axis, [top, bottom]]) => places[axis] >= top && places[axis] <= bottom))
      .map(([id]) => id));
    for (const [id, found] of byTrial) {
      // Trials without a line have no place on the axes: any range leaves them out.
      for (const one of found) one.classList.toggle("left-out", ranges.size > 0 && !selected.has(id));
    }
    document.getElementById("selected").textContent =
      ranges.size ? `${selected.size} of ${threads.length} trials selected` : "";
  };

  const heightOf = (event) => {
    const box = parallel.getBoundingClientRect();
    return (event.clientY - box.top) / box.height * parallel.viewBox.baseVal.height;
  };
  for (const grip of parallel.querySelectorAll(".grip")) {
    const axis = Number(grip.dataset.axis), range = grip.nextElementSibling;
    const top = Number(grip.getAttribute("y")), bottom = top + Number(grip.getAttribute("height"));
    const inside = (y) => Math.min(bottom, Math.max(top, y));
    let start = null;
    const mark = (from, to) => {
      range.setAttribute("y", from);
      range.setAttribute("height", to - from);
    };
    grip.addEventListener("pointerdown", (event) => {
      grip.setPointerCapture(event.pointerId);
      start = inside(heightOf(event));
    });
    grip.addEventListener("pointermove", (event) => {
      if (start === null) return;
      const end = inside(heightOf(event));
      mark(Math.min(start, end), Math.max(start, end));
    });
    grip.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const end = inside(heightOf(event)), from = Math.min(start, end), to = Math.max(start, end);
      start = null;
      if (to - from < CLICK) {
        ranges.delete(axis);
        mark(0, 0);
      } else {
        ranges.set(axis, [from, to]);
        mark(from, to);
      }
      select();
    });
    grip.addEventListener("pointercancel", () => { start = null; });
  }
})();
