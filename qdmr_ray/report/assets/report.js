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
      table.tBodies[0].replaceChildren(...Object.entries(photograph.figures).map(([kind, row]) =>
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

  // ---------------------------------------------------------------- reading the curves
  const format = (number) => number === null ? "not finite"
    : (number !== 0 && Math.abs(number) < 1e-3 ? number.toExponential(2) : String(Number(number.toPrecision(4)))).replace("-", "−");
  const charts = read("chart-data");
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const chart = charts[Number(figure.dataset.chart)];
    const svg = figure.querySelector("svg"), plot = figure.querySelector(".plot");
    const cursor = figure.querySelector(".cursor"), line = cursor.querySelector("line");
    const circles = [...cursor.querySelectorAll("circle")];
    const values = [...figure.querySelectorAll(".readout b")], where = figure.querySelector(".where");
    const longest = chart.series.reduce((a, b) => (a.points.length >= b.points.length ? a : b)).points;
    let position = longest.length - 1;

    const nearest = (points, x) => points.reduce((best, point) =>
      Math.abs(point[2] - x) < Math.abs(best[2] - x) ? point : best);
    const say = (x, iteration) => {
      where.textContent = iteration === null ? "last" : `${chart.along ?? "iteration"} ${iteration}`;
      chart.series.forEach((series, index) => {
        const point = nearest(series.points, x);
        values[index].textContent = format(point[1]) + (chart.unit ?? "");
        circles[index].setAttribute("cx", point[2]);
        circles[index].setAttribute("cy", point[3] ?? 0);
        circles[index].setAttribute("visibility", point[3] === null ? "hidden" : "inherit");
      });
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      cursor.setAttribute("visibility", iteration === null ? "hidden" : "visible");
    };
    // At rest a curve says where it ended; bars have no last value that matters.
    const rest = () => {
      say(chart.right, null);
      if (!chart.rest) return;
      where.textContent = chart.rest;
      for (const shown of values) shown.textContent = "–";
    };
    const point = (index) => {
      position = clamp(index, 0, longest.length - 1);
      say(longest[position][2], longest[position][0]);
    };

    plot.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * chart.width;
      point(longest.indexOf(nearest(longest, clamp(x, chart.left, chart.right))));
    });
    plot.addEventListener("pointerleave", rest);
    plot.addEventListener("blur", rest);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      figure.querySelector(".readout").setAttribute("aria-live", "polite");
      point(position + step);
    });
    rest();
  }
})();
