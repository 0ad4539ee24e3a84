"""Charts of a sweep over its trials and iterations, drawn as SVG without a library.

Whatever belongs to a trial carries ``data-trial``, so that the page's script can show one trial in
all charts, and a title that tells its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from qdmr_ray.report.axes import BOTTOM, RIGHT, TOP, Axes
from qdmr_ray.report.sweep.data import (
    FAILED,
    FINISHED,
    RUNNING,
    STATE_LABELS,
    STOPPED,
    Sweep,
    Trial,
    setting_text,
)
from qdmr_ray.report.sweep.scales import Scale, metric_scale

# All lengths in the SVG's own units.
WIDTH, HEIGHT, LEFT = 560, 300, 56
# More points of a curve than this cannot be told apart.
MOST_POINTS = 120
# States differ in shape, not in colour alone. Each is drawn around 0, 0.
SHAPES = {
    FINISHED: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    STOPPED: "M-4.8 -3.6h9.6l-4.8 8.4z",
    RUNNING: "M0 -5.2l5.2 5.2l-5.2 5.2l-5.2 -5.2z",
    FAILED: "M-3.8 -3.8l7.6 7.6M3.8 -3.8l-7.6 7.6",
}
BEST_RING = "M-8.5 0a8.5 8.5 0 1 0 17 0a8.5 8.5 0 1 0 -17 0z"
BASELINE_RING = "M-7.5 -7.5h15v15h-15z"


def describe(sweep: Sweep, trial: Trial) -> str:
    """A trial in some lines: state, values and settings."""
    values = [
        f"{objective.style.label} {objective.text(value)}"
        for objective, value in zip(sweep.objectives, trial.values, strict=True)
        if value is not None
    ]
    settings = [f"{sweep.short[name]} {setting_text(v)}" for name, v in trial.settings.items()]
    state = STATE_LABELS.get(trial.state, trial.state)
    reason = [trial.error] if trial.error else []
    return "\n".join([f"{trial.title}, {state}", *values, *settings, *reason])


def mark(sweep: Sweep, trial: Trial, x: float, y: float, title: str) -> str:
    """The sign of a trial: its state's shape, in a ring if it is the best, a square if it is the
    baseline."""
    rings = (
        (trial is sweep.best, "best", BEST_RING),
        (trial is sweep.baseline, "own", BASELINE_RING),
    )
    drawn = "".join(f'<path class="ring {kind}" d="{path}"/>' for on, kind, path in rings if on)
    return (
        f'<g class="mark {state_class(trial.state)}" data-trial="{escape(trial.id)}" '
        f'transform="translate({x:.1f} {y:.1f})"><title>{escape(title)}</title>{drawn}'
        f'<path d="{SHAPES.get(trial.state, SHAPES[RUNNING])}"/></g>'
    )


def state_class(state: str) -> str:
    """The class that colours a state; a word from a file is no class."""
    return state if state in SHAPES else RUNNING


def running_best(sweep: Sweep, index: int) -> list[tuple[int, float]]:
    """``(number, value)`` of each trial that was better than all before it, in objective ``index``.

    Trials that were stopped early don't count.
    """
    better = sweep.objectives[index].style.better
    steps: list[tuple[int, float]] = []
    for trial in filter(sweep.counts, sweep.searched):
        value = trial.values[index]
        if value is not None and (not steps or (value - steps[-1][1]) * better > 0):
            steps.append((trial.number, value))
    return steps


def draw_history(sweep: Sweep, index: int) -> str:
    """The value of each trial over its number; those that failed without one stand on the axis.

    Empty where no trial has a value.
    """
    objective = sweep.objectives[index]
    trials = sweep.searched
    known = [value for trial in trials if (value := trial.values[index]) is not None]
    if not known:
        return ""
    numbers = [trial.number for trial in trials]
    scale = metric_scale(sweep.scale_values(index), objective.style.better)
    axes = plot_axes(min(numbers) - 0.5, max(numbers) + 0.5, scale)
    ticks = Scale(low=min(numbers), high=max(numbers), whole=True).numbers
    parts = [axes.draw("trial", [(tick, f"{tick:.0f}") for tick in ticks])]
    steps = [] if sweep.is_ablation else running_best(sweep, index)
    if steps:
        (x, y), *corners = [(axes.x(number), value_y(axes, value)) for number, value in steps]
        path = f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in corners)
        parts.append(f'<path class="so-far" d="{path}H{WIDTH - RIGHT}"/>')
    parts.append(_baseline(sweep, index, axes))
    for trial in trials:
        value = trial.values[index]
        if value is not None or trial.state == FAILED:
            y = HEIGHT - BOTTOM if value is None else value_y(axes, value)
            parts.append(mark(sweep, trial, axes.x(trial.number), y, describe(sweep, trial)))
    best = f", the best {objective.text(steps[-1][1])} in trial {steps[-1][0]}" if steps else ""
    summary = f"{objective.label} of {len(known)} trials by number{best}"
    return svg(WIDTH, HEIGHT, summary, parts)


def draw_learning_curves(sweep: Sweep, index: int) -> str:
    """What each trial reported over its iterations; empty where none has reported anything."""
    objective = sweep.objectives[index]
    curves = [
        (trial, [(step, y) for step, values in trial.history if (y := values[index]) is not None])
        for trial in sweep.searched
    ]
    curves = [(trial, thinned(points)) for trial, points in curves if points]
    if not curves:
        return ""
    # Those that matter are drawn last, above the others.
    curves.sort(key=lambda curve: (curve[0] is sweep.best, curve[0] is sweep.baseline))
    steps = [step for _, points in curves for step, _ in points]
    # Trials that were stopped early, or went wrong, may leave the picture.
    counting = [points for trial, points in curves if sweep.counts(trial)]
    values = [y for points in counting or [points for _, points in curves] for _, y in points]
    axes = plot_axes(min(steps), max(steps), metric_scale(values, objective.style.better))
    # A nested drawing cuts off what lies beyond the axes.
    plot = f"{LEFT} {TOP} {axes.width} {axes.height}"
    inside = 'x="{}" y="{}" width="{}" height="{}"'.format(*plot.split())
    parts = [axes.draw("iteration"), f'<svg {inside} viewBox="{plot}">']
    for trial, points in curves:
        places = [(axes.x(step), axes.y(value)) for step, value in points]
        # A line of length 0 with round caps is a dot.
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "h0"
        end = ""
        if trial.state in (STOPPED, FAILED):
            x, y = places[-1]
            place = f'transform="translate({x:.1f} {y:.1f}) scale(0.7)"'
            end = f'<path class="end" {place} d="{SHAPES[trial.state]}"/>'
        parts.append(
            f'<g class="curve {state_class(trial.state)}{_role(sweep, trial)}" '
            f'data-trial="{escape(trial.id)}"><title>{escape(describe(sweep, trial))}</title>'
            f'<path class="hit" d="{path}"/><path class="line" d="{path}"/>{end}</g>'
        )
    parts.append("</svg>")
    summary = f"{objective.label} of {len(curves)} trials over the iteration"
    return svg(WIDTH, HEIGHT, summary, parts)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``MOST_POINTS``, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return list(points[::-1][::step][::-1])


def svg(width: int, height: int, summary: str, parts: Sequence[str]) -> str:
    """The drawing, with its summary in words for those who can't see it."""
    label = escape(summary)
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>'


def plot_axes(x_low: float, x_high: float, scale: Scale) -> Axes:
    """Axes of a chart of the size that all but the small ones have."""
    return Axes(
        x_low, x_high, scale.low, scale.high, scale.logarithmic, left=LEFT, size=(WIDTH, HEIGHT)
    )


def value_y(axes: Axes, value: float) -> float:
    """Place of ``value``; one beyond the axis stands at its end."""
    low, high = axes.y_range
    return axes.y(min(max(value, low), high))


def _role(sweep: Sweep, trial: Trial) -> str:
    return " best" if trial is sweep.best else " own" if trial is sweep.baseline else ""


def _baseline(sweep: Sweep, index: int, axes: Axes) -> str:
    """A dashed line at the value of the experiment's own settings, where there is one."""
    value = sweep.baseline.values[index] if sweep.baseline else None
    if value is None:
        return ""
    y = value_y(axes, value)
    return f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
