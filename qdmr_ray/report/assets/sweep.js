"use strict";
// A sweep's page: what belongs to one trial is shown together in every chart and table, and boxes
// drawn over the parallel coordinates select trials in all of them.
(() => {
  const everywhere = (id) => document.querySelectorAll(`[data-trial="${CSS.escape(id)}"]`);
  let shown = null, kept = null, selected = null;

  // ---------------------------------------------------------------- showing one trial
  const show = (id) => {
    if (id === shown) return;
    if (shown !== null) everywhere(shown).forEach((found) => found.classList.remove("shown"));
    if (id !== null) everywhere(id).forEach((found) => found.classList.add("shown"));
    document.body.classList.toggle("one-shown", id !== null);
    shown = id;
  };
  const keep = (id) => {
    kept = id === kept ? null : id;
    show(kept);
  };
  const rowOf = (target) => target.closest("tr[data-trial]")?.dataset.trial ?? null;
  document.addEventListener("pointerover", (event) => {
    if (!event.target.closest(".plot")) show(rowOf(event.target) ?? kept);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("button, a, summary, input, select, label, .plot")) return;
    keep(rowOf(event.target));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    kept = null;
    show(null);
  });

  // Plotly draws a trace as an element whose class ends in the trace's uid. With the trial's id
  // written on it, or on its points, the style sheet can let one trial stand out: redrawing every
  // chart whenever the pointer moves would be too slow.
  const trialOf = ({ data, pointNumber }) => data.meta ?? data.customdata?.[pointNumber] ?? null;
  const tag = (plot) => {
    for (const trace of plot.data) {
      if (!trace.uid) continue;
      const drawn = plot.querySelector(`.trace${CSS.escape(trace.uid)}`);
      if (!drawn) continue;
      const found = trace.meta ? [drawn] : [...drawn.querySelectorAll(".point")];
      found.forEach((one, index) => {
        const id = trace.meta ?? trace.customdata[index];
        one.dataset.trial = id;
        one.classList.toggle("shown", id === shown);
        one.classList.toggle("left-out", selected !== null && !selected.has(id));
      });
    }
  };

  // ---------------------------------------------------------------- selecting ranges
  const select = (plot, drawn) => {
    const boxes = drawn.map(({ x0, x1, y0, y1 }) =>
      ({ left: Math.min(x0, x1), right: Math.max(x0, x1), low: Math.min(y0, y1), high: Math.max(y0, y1) }));
    const threads = plot.data.filter((trace) => trace.meta);
    const passes = ({ x, y }) => boxes.every(({ left, right, low, high }) =>
      x.every((axis, index) => axis < left || axis > right || (y[index] >= low && y[index] <= high)));
    selected = boxes.length ? new Set(threads.filter(passes).map((trace) => trace.meta)) : null;
    for (const found of document.querySelectorAll("[data-trial]")) {
      // Trials without a line have no place on the axes: any box leaves them out.
      found.classList.toggle("left-out", selected !== null && !selected.has(found.dataset.trial));
    }
    document.getElementById("selected").textContent =
      selected ? `${selected.size} of ${threads.length} trials selected` : "";
  };

  document.addEventListener("drawn", ({ target: plot }) => {
    tag(plot);
    plot.on("plotly_afterplot", () => tag(plot));
    plot.on("plotly_hover", ({ points }) => show(trialOf(points[0]) ?? kept));
    plot.on("plotly_unhover", () => show(kept));
    plot.on("plotly_click", ({ points }) => keep(trialOf(points[0])));
    if (!plot.closest(".parallel")) return;
    plot.on("plotly_selected", () => select(plot, plot.layout.selections ?? []));
    plot.on("plotly_deselect", () => select(plot, []));
  });
})();
