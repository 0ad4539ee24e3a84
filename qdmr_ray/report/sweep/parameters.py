"""Charts of a sweep over its parameters: parallel coordinates and slices, drawn as SVG."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from html import escape

from qdmr_ray.report.axes import HEIGHT, LEFT, WIDTH, Axes
from qdmr_ray.report.sweep.charts import describe, mark, state_class, svg, value_y
from qdmr_ray.report.sweep.data import MISSING, Objective, Sweep, Trial, setting_text
from qdmr_ray.report.sweep.scales import NOT_USED, Scale, fit, metric_scale, parameter_scale

# All lengths in the SVG's own units: of the parallel coordinates' plot and around it.
PARALLEL_WIDTH, PARALLEL_HEIGHT = 1120, 380
TOP, BOTTOM, SIDE, END = 40, 14, 64, 78
# Axes closer than this would hide each other's labels; the drawing becomes wider instead.
AXIS_DISTANCE = 104
# Half the width of the strip along an axis in which the pointer selects a range.
GRIP = 12
# Shades of a line from the worst value to the best.
SHADES = 7
# A golden share spreads the trials of a category evenly, whatever their number.
GOLDEN = 0.6180339887
# How much of a category's width its trials are spread over.
SPREAD = 0.6
# The same for lines, which have to be told apart but still meet.
LINE_SPREAD = 0.3
FEWEST_FOR_MEDIAN = 3


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One parameter's chart; ``remark`` says how its axis is to be read."""

    name: str
    title: str
    remark: str
    svg: str


def draw_parallel(sweep: Sweep) -> str:
    """A line per trial across one axis per parameter and one per objective.

    The most important parameter stands beside the objectives. Trials that lack a value have no
    line; empty where all do.
    """
    trials = [trial for trial in sweep.searched if None not in trial.values]
    names = sweep.parameters[::-1]
    if not trials or not names:
        return ""
    axes = [(name, sweep.short[name], _scale(sweep, name)) for name in names]
    axes += [
        (objective.name, objective.label, _objective_scale(sweep, index))
        for index, objective in enumerate(sweep.objectives)
    ]
    width = max(PARALLEL_WIDTH, SIDE + END + AXIS_DISTANCE * (len(axes) - 1))
    distance = (width - SIDE - END) / (len(axes) - 1)
    places = [SIDE + distance * index for index in range(len(axes))]
    # The best is drawn last, above the others.
    better = sweep.objectives[0].style.better
    order = sorted(trials, key=lambda trial: (trial is sweep.best, (trial.values[0] or 0) * better))
    scales = [scale for _, _, scale in axes]
    parts = [_line(sweep, trial, scales, places) for trial in order]
    for index, ((name, label, scale), x) in enumerate(zip(axes, places, strict=True)):
        parts.append(_parallel_axis(index, x, scale))
        # Centred on its axis, the first one would be cut at the edge.
        shown = fit(label, min(distance - 8, 2 * x, 2 * (width - x)))
        title = "" if shown == escape(name) else f"<title>{escape(name)}</title>"
        parts.append(f'<text class="x head" x="{x:.1f}" y="16">{shown}{title}</text>')
        if name in sweep.space and sweep.space[name].get("log"):
            parts.append(f'<text class="x" x="{x:.1f}" y="29">log</text>')
    summary = f"{len(trials)} trials across {', '.join(label for _, label, _ in axes)}"
    return svg(round(width), PARALLEL_HEIGHT, summary, parts)


def draw_slices(sweep: Sweep, index: int) -> list[Slice]:
    """Objective ``index`` over each parameter, the most important first; empty without values."""
    trials = [trial for trial in sweep.searched if trial.values[index] is not None]
    if not trials:
        return []
    return [_slice(sweep, index, name, trials) for name in sweep.parameters]


def shade(value: float, scale: Scale, better: int) -> int:
    """From 0 for the worst values of the scale to ``SHADES - 1`` for the best."""
    fraction = scale.place(value) if better > 0 else 1.0 - scale.place(value)
    return min(SHADES - 1, int(fraction * SHADES))


def jittered(trial: Trial, scale: Scale, value: object, spread: float = SPREAD) -> float:
    """Place of ``value``, moved by the trial's number within a share of its category's width."""
    offset = (trial.number * GOLDEN) % 1.0 - 0.5
    return scale.place(value) + offset * spread * scale.room(value)


def _slice(sweep: Sweep, index: int, name: str, trials: list[Trial]) -> Slice:
    objective, x_scale = sweep.objectives[index], _scale(sweep, name)
    scale = _objective_scale(sweep, index)
    axes = Axes(0.0, 1.0, scale.low, scale.high, scale.logarithmic, left=LEFT, size=(WIDTH, HEIGHT))
    parts = [axes.draw(sweep.short[name], x_scale.fitted_ticks(axes.width))]
    parts += _medians(sweep, index, name, x_scale, axes)
    for trial in sorted(trials, key=lambda trial: trial is sweep.best):
        value = trial.values[index]
        assert value is not None
        setting = trial.settings.get(name, MISSING)
        x = axes.x(jittered(trial, x_scale, setting))
        y = value_y(axes, value)
        text = NOT_USED if setting is MISSING else setting_text(setting)
        title = f"{trial.title}: {sweep.short[name]} {text}, {objective.text(value)}"
        parts.append(mark(sweep, trial, x, y, title))
    summary = f"{objective.label} of {len(trials)} trials over {name}"
    remarks = ["log"] if x_scale.logarithmic else []
    # Importances are those of the first objective.
    if index == 0 and name in sweep.importances:
        remarks.append(f"importance {100 * sweep.importances[name]:.1f} %")
    return Slice(
        name=name,
        title=sweep.short[name],
        remark=", ".join(remarks),
        svg=svg(WIDTH, HEIGHT, summary, parts),
    )


def _medians(sweep: Sweep, index: int, name: str, x_scale: Scale, axes: Axes) -> list[str]:
    """A bar at the median of each category, of the trials that count."""
    by_place: dict[float, tuple[str, float, list[float]]] = {}
    for trial in filter(sweep.counts, sweep.searched):
        setting, value = trial.settings.get(name, MISSING), trial.values[index]
        room = x_scale.room(setting)
        if room and value is not None:
            text = NOT_USED if setting is MISSING else setting_text(setting)
            known = by_place.setdefault(x_scale.place(setting), (text, room, []))
            known[2].append(value)
    parts = []
    for place, (text, room, values) in by_place.items():
        if len(values) < FEWEST_FOR_MEDIAN:
            continue
        median = statistics.median(values)
        y, half = value_y(axes, median), SPREAD * room / 2
        title = f"{text}: median {sweep.objectives[index].text(median)} of {len(values)} finished"
        parts.append(
            f'<path class="median" d="M{axes.x(place - half):.1f} {y:.1f}'
            f'H{axes.x(place + half):.1f}"><title>{escape(title)}</title></path>'
        )
    return parts


def _line(sweep: Sweep, trial: Trial, scales: list[Scale], places: list[float]) -> str:
    settings = [trial.settings.get(name, MISSING) for name in sweep.parameters[::-1]]
    across = zip(scales, [*settings, *trial.values], strict=True)
    found = [_parallel_y(jittered(trial, scale, value, LINE_SPREAD)) for scale, value in across]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(places, found, strict=True))
    first = trial.values[0]
    assert first is not None
    tone = shade(first, scales[len(settings)], sweep.objectives[0].style.better)
    role = " best" if trial is sweep.best else ""
    return (
        f'<g class="thread v{tone} {state_class(trial.state)}{role}" '
        f'data-trial="{escape(trial.id)}" data-places="{" ".join(f"{y:.1f}" for y in found)}">'
        f"<title>{escape(describe(sweep, trial))}</title>"
        f'<path class="hit" d="{path}"/><path class="line" d="{path}"/></g>'
    )


def _parallel_axis(index: int, x: float, scale: Scale) -> str:
    bottom = PARALLEL_HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>']
    # Categories as close together as the height of their text are not all named.
    step = max(1, round(len(scale.choices) / 22))
    slots = len(scale.slots)
    for place, text in [*scale.ticks[:slots], *scale.ticks[slots::step]]:
        y = _parallel_y(place)
        parts.append(f'<line class="tick" x1="{x - 3:.1f}" x2="{x + 3:.1f}" y1="{y:.1f}"')
        parts.append(f' y2="{y:.1f}"/><text class="at" x="{x + 7:.1f}" y="{y + 3.5:.1f}">')
        parts.append(f"{fit(text, AXIS_DISTANCE - 20)}</text>")
    # Above the lines: here the pointer selects a range.
    parts.append(
        f'<rect class="grip" data-axis="{index}" x="{x - GRIP:.1f}" y="{TOP}" '
        f'width="{2 * GRIP}" height="{bottom - TOP}"><title>Drag along the axis to select the '
        "trials in a range; click to clear it</title></rect>"
        f'<rect class="range" x="{x - GRIP / 2:.1f}" y="0" width="{GRIP}" height="0"/>'
    )
    return f'<g class="upright">{"".join(parts)}</g>'


def _parallel_y(place: float) -> float:
    return TOP + (PARALLEL_HEIGHT - TOP - BOTTOM) * (1.0 - place)


def _scale(sweep: Sweep, name: str) -> Scale:
    observed = [trial.settings.get(name, MISSING) for trial in sweep.searched if trial.has_value]
    return parameter_scale(sweep.space[name], observed)


def _objective_scale(sweep: Sweep, index: int) -> Scale:
    objective: Objective = sweep.objectives[index]
    return metric_scale(sweep.scale_values(index), objective.style.better)
