"use strict";
// The page works on data that Python put into it as JSON. Names from files only ever become text,
// never markup: textContent and setAttribute, no innerHTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // ---------------------------------------------------------------- comparing photographs
  const MAGNIFICATION = 4;
  const data = read("viewer-data");
  if (data.photographs.length) {
    const stage = byId("stage"), split = byId("split"), square = byId("window");
    const sides = { left: byId("left"), right: byId("right") };
    let photograph = data.photographs[0];
    let focus = [0.5, 0.5];

    const showSplit = () => {
      stage.style.setProperty("--split", split.value);
      const left = sides.left.selectedOptions[0], right = sides.right.selectedOptions[0];
      split.setAttribute("aria-valuetext",
        `${split.value} % ${left.text}, ${100 - split.value} % ${right.text}`);
    };

    const showSides = () => {
      const named = { left: ["over", "tag-left"], right: ["under", "tag-right"] };
      for (const [side, [image, tag]] of Object.entries(named)) {
        const kind = sides[side].value;
        byId(image).src = photograph.pictures[kind];
        byId(image).alt = `${data.labels[kind]} of ${photograph.name}`;
        byId(tag).textContent = data.labels[kind];
      }
      showSplit();
    };

    const fillChoices = () => {
      const kinds = Object.keys(data.labels).filter((kind) => kind in photograph.pictures);
      const stages = kinds.filter((kind) => kind !== "input" && kind !== "ground_truth");
      const first = kinds.includes(data.left) ? data.left : kinds[0];
      const defaults = { left: first, right: stages.at(-1) ?? kinds.at(-1) };
      for (const [side, select] of Object.entries(sides)) {
        const kept = kinds.includes(select.value) ? select.value : defaults[side];
        select.replaceChildren(...kinds.map((kind) =>
          element("option", { value: kind, textContent: data.labels[kind] })));
        select.value = kept;
      }
    };

    const showFigures = () => {
      const table = byId("photograph-figures");
      const cell = (tag, text, scope) => {
        const made = element(tag, { textContent: text, className: tag === "td" ? "number" : "" });
        if (scope) made.scope = scope;
        return made;
      };
      const head = element("tr", {}, element("td"));
      for (const metric of data.metrics) {
        const made = cell("th", metric, "col");
        made.className = "number";
        head.append(made);
      }
      table.tHead.replaceChildren(head);
      table.tBodies[0].replaceChildren(...Object.entries(photograph.metrics).map(([kind, row]) =>
        element("tr", {}, cell("th", data.labels[kind] ?? kind, "row"),
          ...row.map((text) => cell("td", text)))));
    };

    // The magnified details: the same square of every picture.
    const crops = () => [...document.querySelectorAll(".crop")];
    const showFocus = () => {
      const shown = crops()[0];
      if (!shown || !shown.clientWidth) return;
      const width = photograph.width * photograph.scale, height = photograph.height * photograph.scale;
      const share = [shown.clientWidth / MAGNIFICATION / width, shown.clientHeight / MAGNIFICATION / height];
      focus = focus.map((value, axis) =>
        share[axis] >= 1 ? 0.5 : clamp(value, share[axis] / 2, 1 - share[axis] / 2));
      const [x, y] = focus;
      for (const crop of crops()) {
        crop.style.backgroundSize = `${width * MAGNIFICATION}px ${height * MAGNIFICATION}px`;
        crop.style.backgroundPosition =
          `${crop.clientWidth / 2 - x * width * MAGNIFICATION}px ` +
          `${crop.clientHeight / 2 - y * height * MAGNIFICATION}px`;
      }
      square.style.left = `${(x - share[0] / 2) * 100}%`;
      square.style.top = `${(y - share[1] / 2) * 100}%`;
      square.style.width = `${share[0] * 100}%`;
      square.style.height = `${share[1] * 100}%`;
    };
    const moveFocus = (pixelsX, pixelsY) => {
      focus = [focus[0] + pixelsX / (photograph.width * photograph.scale),
        focus[1] + pixelsY / (photograph.height * photograph.scale)];
      showFocus();
    };

    const STEPS = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
    const makeCrop = (kind) => {
      const crop = element("div", { className: "crop", tabIndex: 0 });
      crop.setAttribute("role", "img");
      crop.setAttribute("aria-label",
        `Detail of ${photograph.name}, ${data.labels[kind]}; the arrow keys move it`);
      crop.style.backgroundImage = `url("${photograph.pictures[kind]}")`;
      crop.addEventListener("pointerdown", (event) => crop.setPointerCapture(event.pointerId));
      crop.addEventListener("pointermove", (event) => {
        if (crop.hasPointerCapture(event.pointerId)) {
          moveFocus(-event.movementX / MAGNIFICATION, -event.movementY / MAGNIFICATION);
        }
      });
      crop.addEventListener("keydown", (event) => {
        if (!(event.key in STEPS)) return;
        event.preventDefault();
        moveFocus(...STEPS[event.key]);
      });
      return crop;
    };

    const showDetails = () => {
      byId("details").replaceChildren(...Object.keys(photograph.pictures).map((kind) => {
        const card = element("div", { className: "card" },
          element("h4", { textContent: data.labels[kind] }), makeCrop(kind));
        if (kind in photograph.differences) {
          card.append(element("img", {
            src: photograph.differences[kind],
            alt: `Difference of ${data.labels[kind]} from the ground truth, ${photograph.name}`,
          }));
        } else if (kind === "ground_truth") {
          const note = element("div", { className: "reference", textContent: "what the others are compared with" });
          note.style.aspectRatio = photograph.width / photograph.height;
          card.append(note);
        }
        return card;
      }));
      showFocus();
    };

    const show = (index) => {
      photograph = data.photographs[index];
      focus = [...photograph.focus];
      document.querySelector(`input[name="photograph"][value="${index}"]`).checked = true;
      stage.style.setProperty("--ratio", photograph.width / photograph.height);
      byId("photograph-name").textContent = photograph.name;
      const shown = Math.round(photograph.scale * 100);
      byId("photograph-size").textContent = `${photograph.width} × ${photograph.height} pixels` +
        (shown < 100 ? `, stored here at ${shown} %` : "");
      fillChoices();
      showSides();
      showFigures();
      showDetails();
    };

    split.addEventListener("input", showSplit);
    for (const select of Object.values(sides)) select.addEventListener("change", showSides);
    byId("swap").addEventListener("click", () => {
      [sides.left.value, sides.right.value] = [sides.right.value, sides.left.value];
      showSides();
    });
    stage.addEventListener("pointermove", (event) => {
      // While the divider is dragged the square stays where it was.
      if (event.pointerType !== "mouse" || event.buttons) return;
      const box = stage.getBoundingClientRect();
      focus = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      showFocus();
    });
    for (const choice of document.querySelectorAll('input[name="photograph"]')) {
      choice.addEventListener("change", () => show(Number(choice.value)));
    }
    for (const button of document.querySelectorAll("[data-photograph]")) {
      button.addEventListener("click", () => {
        show(Number(button.dataset.photograph));
        byId("viewer").scrollIntoView({ block: "center" });
      });
    }
    window.addEventListener("resize", showFocus);
    show(0);
  }

  // ---------------------------------------------------------------- sorting the tables
  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    return column === 0 || text === "" ? text : Number(text === "inf" ? Infinity : text === "-inf" ? -Infinity : text);
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b || 0;
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("th[aria-sort]")];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
      // Rows without a figure stay at the end in either direction.
      const known = rows.filter(([key]) => key !== ""), unknown = rows.filter(([key]) => key === "");
      known.sort(([a], [b]) => compare(a, b) * (ascending ? 1 : -1));
      table.tBodies[0].append(...[...known, ...unknown].map(([, row]) => row));
    }));
  }

  // ---------------------------------------------------------------- drawing the charts
  // Figures name colours as var(--name); their values are those of the style sheet, in light and dark.
  const root = document.documentElement;
  const coloured = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value)?.[1];
      return name ? style.getPropertyValue(name).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  };
  const { template, charts } = read("chart-data");
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset+autosize" };
  const touch = matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll("[data-chart]")];
  const chartOf = (plot) => charts[Number(plot.dataset.chart)];
  const drawn = new Set();
  const draw = (plot) => {
    const style = getComputedStyle(root), first = !drawn.has(plot), chart = chartOf(plot);
    const { data, layout } = coloured({ data: chart.data, layout: { ...chart.layout, template } }, style);
    // A finger that scrolls the page must not zoom the chart that it begins on.
    if (touch && !layout.dragmode) layout.dragmode = false;
    // What a user has enlarged or selected outlives a change of the colour scheme.
    layout.uirevision = "kept";
    if (plot.layout?.selections) layout.selections = plot.layout.selections;
    drawn.add(plot);
    Plotly.react(plot, data, layout, config);
    if (first) plot.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  };
  // Charts are drawn when they come near the window: those in a closed <details> have no width yet.
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      if (!drawn.has(target)) draw(target);
    }
  }, { rootMargin: "800px" });
  window.addEventListener("DOMContentLoaded", () => plots.forEach((plot) => seen.observe(plot)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

  // On paper nothing can be opened, all is light, and a chart can't follow the width of the sheet.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.numbers)")) details.open = true;
    root.classList.add("paper");
    plots.forEach((plot) => { draw(plot); Plotly.Plots.resize(plot); });
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("paper");
    plots.forEach((plot) => { draw(plot); Plotly.Plots.resize(plot); });
  });

  // ---------------------------------------------------------------- the table behind each chart
  const format = (number) => typeof number !== "number" ? number ?? "–"
    : (number !== 0 && Math.abs(number) < 1e-3 ? number.toExponential(2) : String(Number(number.toPrecision(6)))).replace("-", "−");
  // A column per line of the chart, a row per iteration.
  const tableOf = ({ data, layout }) => {
    const lines = data.filter((trace) => trace.hoverinfo !== "skip"), rows = new Map();
    lines.forEach((trace, column) => trace.x.forEach((x, index) => {
      if (!rows.has(x)) rows.set(x, [x, ...lines.map(() => null)]);
      rows.get(x)[column + 1] = trace.y[index];
    }));
    const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
    return {
      head: [layout.xaxis.title.text, ...lines.map((trace) => plain(trace.name ?? "value"))],
      rows: [...rows.values()].sort((a, b) => a[0] - b[0]),
    };
  };
  for (const details of document.querySelectorAll("details.numbers")) {
    details.addEventListener("toggle", () => {
      const chart = chartOf(details.closest("figure").querySelector("[data-chart]"));
      const { head, rows } = chart.table ?? tableOf(chart);
      const numeric = head.map((_, column) => rows.some((row) => typeof row[column] === "number"));
      const cell = (tag, column, text) =>
        element(tag, { textContent: text, className: numeric[column] ? "number" : "", scope: tag === "th" ? "col" : "" });
      details.querySelector(".scroll").replaceChildren(element("table", {},
        element("thead", {}, element("tr", {}, ...head.map((text, column) => cell("th", column, text)))),
        element("tbody", {}, ...rows.map((row) =>
          element("tr", {}, ...row.map((value, column) => cell("td", column, format(value))))))));
    }, { once: true });
  }
})();
