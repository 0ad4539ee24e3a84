"""Charts that set a sweep's results side by side: importances, Pareto fronts and variants."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from qdmr_ray.report.axes import BOTTOM, RIGHT, TOP, Axes
from qdmr_ray.report.sweep.charts import HEIGHT, WIDTH, describe, mark, plot_axes, svg, value_y
from qdmr_ray.report.sweep.data import Sweep
from qdmr_ray.report.sweep.scales import fit, metric_scale

# All lengths in the SVG's own units.
ROW, ROW_LABEL = 30, 170
# The width of a character of a row's label.
ROW_CHARACTER = 7.0
BAR = 12

Place = tuple[float, float]


def draw_importances(sweep: Sweep) -> str:
    """A bar per parameter, the longest first; empty where they are not known."""
    shares = sorted(sweep.importances.items(), key=lambda item: -item[1])
    if not shares:
        return ""
    height = TOP + ROW * len(shares)
    longest = max(max(share for _, share in shares), 1e-9)
    room = WIDTH - ROW_LABEL - RIGHT - 50
    parts = []
    for row, (name, share) in enumerate(shares):
        y = TOP + ROW * (row + 0.5)
        length = max(1.0, room * max(0.0, share) / longest)
        parts.append(
            f"<g><title>{escape(name)}: {100 * share:.1f} %</title>"
            f'<text class="row" x="{ROW_LABEL - 12}" y="{y + 4:.1f}">'
            f"{fit(sweep.short[name], ROW_LABEL - 12, ROW_CHARACTER)}</text>"
            f'<rect class="bar s0" x="{ROW_LABEL}" y="{y - BAR / 2:.1f}" width="{length:.1f}" '
            f'height="{BAR}" rx="2"/><text class="share" x="{ROW_LABEL + length + 8:.1f}" '
            f'y="{y + 4:.1f}">{100 * share:.1f} %</text></g>'
        )
    words = ", ".join(f"{sweep.short[name]} {100 * share:.0f} %" for name, share in shares)
    return svg(WIDTH, height, f"Importance of each parameter: {words}", parts)


def draw_front(sweep: Sweep, first: int, other: int) -> str:
    """Two objectives against each other, the Pareto front connected where they are the only two.

    Empty where no trial has both values.
    """
    across, up = sweep.objectives[other], sweep.objectives[first]
    both = [
        (trial, x, y)
        for trial in sweep.searched
        if (x := trial.values[other]) is not None and (y := trial.values[first]) is not None
    ]
    if not both:
        return ""
    x_scale = metric_scale(sweep.scale_values(other), across.style.better)
    axes = plot_axes(0.0, 1.0, metric_scale(sweep.scale_values(first), up.style.better))
    parts = [
        axes.draw(f"{across.label} ({across.style.direction})", x_scale.fitted_ticks(axes.width))
    ]
    front = sorted([row for row in both if row[0] in sweep.front], key=lambda row: row[1])
    if len(front) > 1 and len(sweep.objectives) == 2:
        better = across.style.better, up.style.better
        corners = _staircase([(x, y) for _, x, y in front], better)
        drawn = [(axes.x(x_scale.place(x)), value_y(axes, y)) for x, y in corners]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
        parts.append(f'<path class="front" d="{path}"/>')
    for trial, x, y in sorted(both, key=lambda row: row[0] in sweep.front):
        place = axes.x(x_scale.place(x)), value_y(axes, y)
        sign = mark(sweep, trial, *place, describe(sweep, trial))
        parts.append(f'<g class="on-front">{sign}</g>' if trial in sweep.front else sign)
    summary = f"{up.label} against {across.label} of {len(both)} trials; {len(front)} on the front"
    return svg(WIDTH, HEIGHT, summary, parts)


def draw_variants(sweep: Sweep, index: int) -> str:
    """A strip per variant with a sign per seed and a bar at the mean; empty without values.

    A dashed line marks the first variant's mean.
    """
    objective = sweep.objectives[index]
    seeded = {trial.id: sweep.seeded(trial, index) for trial in sweep.searched}
    every = [value for values in seeded.values() for _, value in values]
    if not every:
        return ""
    scale = metric_scale(every, 0)
    height = TOP + ROW * len(sweep.searched) + BOTTOM
    axes = Axes(0.0, 1.0, 0.0, 1.0, False, left=ROW_LABEL, size=(WIDTH, height), rows=True)
    label = f"{objective.label} ({objective.style.direction})"
    parts = [axes.draw(label, scale.fitted_ticks(axes.width))]
    first = sweep.spread(sweep.searched[0], index).mean
    if first is not None:
        x = axes.x(scale.place(first))
        parts.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}"')
        parts.append(f' y2="{height - BOTTOM}"/>')
    words = []
    for row, trial in enumerate(sweep.searched):
        y, mean = TOP + ROW * (row + 0.5), sweep.spread(trial, index).mean
        words.append(f"{trial.label} {objective.text(mean)}")
        parts.append(
            f'<text class="row" x="{ROW_LABEL - 12}" y="{y + 4:.1f}">'
            f"{fit(trial.label, ROW_LABEL - 12, ROW_CHARACTER)}</text>"
            f'<line class="strip" x1="{ROW_LABEL}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        )
        parts += [
            mark(sweep, seed, axes.x(scale.place(value)), y, describe(sweep, seed))
            for seed, value in seeded[trial.id]
        ]
        if mean is None:
            parts.append(f'<text class="none" x="{ROW_LABEL + 8}" y="{y + 4:.1f}">no result</text>')
            continue
        title = escape(f"{trial.label}: mean {objective.text(mean)}")
        x = axes.x(scale.place(mean))
        parts.append(f'<path class="mean" d="M{x:.1f} {y - 10}v20"><title>{title}</title></path>')
    summary = f"{objective.label} of each variant: {'; '.join(words)}"
    return svg(WIDTH, height, summary, parts)


def _staircase(places: Sequence[Place], better: tuple[int, int]) -> list[Place]:
    """The edge of what the front dominates: corners at the worse of two neighbours' values."""
    corners = [places[0]]
    for before, after in itertools.pairwise(places):
        worse = [
            min(pair) if sign > 0 else max(pair)
            for pair, sign in zip(zip(before, after, strict=True), better, strict=True)
        ]
        corners += [(worse[0], worse[1]), after]
    return corners
