"""Charts of a sweep's trials as Plotly figures: over their numbers, their iterations, and each
other. ``sweep.parameters`` has those over the parameters.

Optuna has plots of these names (``optuna.visualization``), each of which would lose something:

- history, slice and Pareto front leave out trials that were stopped, fail or still run, and show
  neither the baseline nor a trial's settings; a trial whose settings lie outside the search space
  (the experiment's own often do) can't be made an Optuna trial at all;
- intermediate values gives every trial a colour of its own, so that best, baseline and stopped
  trials aren't told apart;
- parallel coordinates are a WebGL trace that compiles code at run time, which the page's content
  policy forbids, and that doesn't name the line under the pointer;
- importances would be computed anew, by a random forest, where ``sweep.json`` holds those that the
  search reported.

A point or a line carries its trial's id, in ``customdata`` or ``meta``: ``sweep.js`` shows the same
trial in every chart.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go

from qdmr_ray.evaluate.sweep_file import FAILED, FINISHED, RUNNING, STOPPED
from qdmr_ray.report.charts import (
    LOG_AXIS,
    VALUE_AXIS,
    Chart,
    Strip,
    draw_strips,
    iteration_axis,
    plain,
    scatter,
)
from qdmr_ray.report.summary import with_unit
from qdmr_ray.report.sweep.data import STATE_LABELS, Sweep, Trial
from qdmr_ray.report.sweep.scales import Scale, metric_scale

# The height in CSS pixels.
TALL = 340
# More points of a curve than this cannot be told apart.
MOST_POINTS = 120
# States differ in shape, not in colour alone.
SYMBOLS = {
    FINISHED: ("circle", "var(--s0)"),
    STOPPED: ("triangle-down-open", "var(--s5)"),
    RUNNING: ("diamond-open", "var(--s1)"),
    FAILED: ("x", "var(--bad)"),
}
BEST_COLOUR, BASELINE_COLOUR = "var(--best)", "var(--s2)"

# Where a trial's sign stands.
Place = tuple[Trial, float, float]


def describe(sweep: Sweep, trial: Trial) -> str:
    """Returns some lines about a trial: state, values and settings."""
    values = [
        f"{objective.label} {with_unit(objective, value)}"
        for objective, value in zip(sweep.objectives, trial.values, strict=True)
        if value is not None
    ]
    settings = [f"{sweep.short[name]} {trial.taken(name, '')}" for name in trial.settings]
    reason = [trial.error] if trial.error else []
    return "\n".join([f"{trial.title}, {trial.state_label}", *values, *settings, *reason])


def running_best(sweep: Sweep, index: int) -> list[tuple[int, float]]:
    """Returns ``(number, value)`` of each trial that was better in objective ``index`` than all
    before it. Trials that were stopped early don't count."""
    better = sweep.objectives[index].better
    steps: list[tuple[int, float]] = []
    for trial in filter(sweep.counts, sweep.searched):
        value = trial.values[index]
        if value is not None and (not steps or (value - steps[-1][1]) * better > 0):
            steps.append((trial.number, value))
    return steps


def draw_history(sweep: Sweep, index: int) -> Chart | None:
    """Draws the value of each trial over its number; failed trials without one stand on the axis.
    Returns ``None`` where no trial has a value."""
    objective, trials = sweep.objectives[index], sweep.searched
    known = sum(trial.values[index] is not None for trial in trials)
    if not known:
        return None
    scale = objective_scale(sweep, index)
    shown = [t for t in trials if t.values[index] is not None or t.state == FAILED]
    places = [(trial, trial.number, scale.held(trial.values[index])) for trial in shown]
    first, last = trials[0].number, trials[-1].number
    traces, best = [], ""
    steps = [] if sweep.is_ablation else running_best(sweep, index)
    if steps:
        number, value = steps[-1]
        best = f", the best {with_unit(objective, value)} in trial {number}"
        line = {"shape": "hv", "color": BEST_COLOUR, "width": 2}
        corners = [*steps, (last, value)]
        traces.append(scatter(corners, line=line, name="best so far", hoverinfo="skip"))
    own = sweep.baseline.values[index] if sweep.baseline else None
    if own is not None:
        level = scale.held(own)
        line = {"dash": "dash", "color": BASELINE_COLOUR, "width": 1.5}
        quiet = {"name": "baseline", "hoverinfo": "skip", "showlegend": False}
        traces.append(scatter([(first, level), (last, level)], line=line, **quiet))
    layout = {
        "xaxis": {**iteration_axis([first, last]), "title": {"text": "trial"}},
        "yaxis": value_axis(scale),
        "showlegend": True,
    }
    return Chart.of(
        traces + marks(sweep, places),
        layout,
        title=f"{objective.full_label} of each trial",
        remark=objective.direction,
        summary=f"{objective.full_label} of {known} trials by number{best}",
        height=TALL,
        table=by_trial(shown, [objective.full_label], lambda trial: [trial.values[index]]),
    )


def draw_learning_curves(sweep: Sweep, index: int) -> Chart | None:
    """Draws each trial's reports over its iterations; returns ``None`` if there are none."""
    objective = sweep.objectives[index]
    curves = []
    for trial in sweep.searched:
        known = [
            (line.iteration, y) for line in trial.history if (y := line.values[index]) is not None
        ]
        if known:
            # Every so many points, the last among them.
            step = -(-len(known) // MOST_POINTS)
            curves.append((trial, known[::-1][::step][::-1]))
    if not curves:
        return None
    # The best and the baseline are drawn last, above the others.
    curves.sort(key=lambda curve: (curve[0] is sweep.best, curve[0] is sweep.baseline))
    # Trials that were stopped early, or went wrong, may leave the picture.
    counting = [points for trial, points in curves if sweep.counts(trial)]
    values = [y for points in counting or [points for _, points in curves] for _, y in points]
    traces: list[go.Scatter] = []
    for trial, points in curves:
        name, line = _curve_style(sweep, trial)
        ends = trial.state in (STOPPED, FAILED) or len(points) == 1
        # Only the end has a sign: there the trial was stopped.
        sizes = [0] * (len(points) - 1) + [8]
        symbol, _ = SYMBOLS[_known_state(trial)]
        curve = scatter(
            points,
            mode="lines+markers" if ends else "lines",
            line=line,
            opacity=1.0 if name in ("best", "baseline") else 0.6,
            marker={"symbol": symbol, "size": sizes, "color": line["color"]},
            name=name,
            legendgroup=name,
            showlegend=name not in {trace.name for trace in traces},
            uid=f"curve{len(traces)}",
            meta=trial.id,
            hovertext=plain(describe(sweep, trial)),
            hovertemplate="iteration %{x}: %{y}<br>%{hovertext}<extra></extra>",
        )
        traces.append(curve)
    layout = {
        "xaxis": iteration_axis([step for _, points in curves for step, _ in points]),
        "yaxis": value_axis(metric_scale(values, objective.better)),
        "showlegend": True,
    }
    return Chart.of(
        traces,
        layout,
        title=f"{objective.full_label} while training",
        remark=objective.direction,
        summary=f"{objective.full_label} of {len(curves)} trials over the iteration",
        height=TALL,
        table={
            "head": ["Trial", "Iteration", objective.full_label],
            "rows": [[trial.label, *point] for trial, points in curves for point in points],
        },
    )


def draw_front(sweep: Sweep, first: int, other: int) -> Chart | None:
    """Draws two objectives against each other, and the line of the Pareto front where they are the
    only two. Returns ``None`` where no trial has both values."""
    across, up = sweep.objectives[other], sweep.objectives[first]
    x_scale, y_scale = objective_scale(sweep, other), objective_scale(sweep, first)
    shown = [t for t in sweep.searched if None not in (t.values[other], t.values[first])]
    if not shown:
        return None
    places = [(t, x_scale.held(t.values[other]), y_scale.held(t.values[first])) for t in shown]
    front = sorted((x, y) for trial, x, y in places if trial in sweep.front)
    traces = []
    if front and len(sweep.objectives) == 2:
        corners = _staircase(front, (across.better, up.better))
        line = {"color": BEST_COLOUR, "width": 2}
        traces.append(scatter(corners, line=line, name="Pareto front", hoverinfo="skip"))
    heading = plain(f"{across.full_label} ({across.direction})")
    layout = {
        "xaxis": {**value_axis(x_scale), "title": {"text": heading}},
        "yaxis": value_axis(y_scale),
        "showlegend": True,
    }
    on_front = f"{len(front)} on the front"
    return Chart.of(
        traces + marks(sweep, places),
        layout,
        title=f"{up.label} and {across.label}",
        remark=f"up: {up.full_label}, {up.direction}",
        summary=f"{up.full_label} against {across.full_label} of {len(shown)} trials; {on_front}",
        height=TALL,
        table=by_trial(
            shown,
            [up.full_label, across.full_label],
            lambda trial: [trial.values[first], trial.values[other]],
        ),
    )


def draw_variants(sweep: Sweep, index: int) -> Chart | None:
    """Draws a strip per variant with a dot per seed, a bar at the mean, and a dotted line at the
    first variant's mean; returns ``None`` without values."""
    objective = sweep.objectives[index]
    seeded = [(trial.label, sweep.seeded(trial, index)) for trial in sweep.searched]
    if not any(seeds for _, seeds in seeded):
        return None
    means = [sweep.spread(trial, index).mean for trial in sweep.searched]
    pairs = zip(sweep.searched, means, strict=True)
    words = [f"{trial.label} {with_unit(objective, mean)}" for trial, mean in pairs]
    strips = [
        Strip(name, "var(--s0)", [(describe(sweep, seed), value, seed.id) for seed, value in seeds])
        for name, seeds in seeded
    ]
    return draw_strips(
        strips,
        axis=objective.full_label,
        line=means[0],
        title=objective.full_label,
        remark="a dot per seed, a bar at the mean, dotted the first variant's",
        summary=f"{objective.full_label} of each variant: {'; '.join(words)}",
        table={
            "head": ["Variant", "Seed", objective.full_label],
            "rows": [
                [name, str(seed.seed), value] for name, seeds in seeded for seed, value in seeds
            ],
        },
    )


def marks(
    sweep: Sweep, places: Sequence[Place], text: Callable[[Trial], str] | None = None
) -> list[go.Scatter]:
    """Returns a sign per trial with its ``text``, a trace per state, and rings around the best and
    the baseline."""
    text = text or partial(describe, sweep)
    # A sign at the very edge stands for a value beyond it.
    signs = partial(scatter, mode="markers", cliponaxis=False)
    # The outline separates signs that overlap.
    outline = {"width": 1, "color": "var(--card)"}
    traces = []
    for state, (symbol, tone) in SYMBOLS.items():
        shown = [place for place in places if _known_state(place[0]) == state]
        if shown:
            traces.append(
                signs(
                    [(x, y) for _, x, y in shown],
                    marker={"symbol": symbol, "size": 10, "color": tone, "line": outline},
                    name=STATE_LABELS[state],
                    uid=f"mark-{state}",
                    customdata=[trial.id for trial, *_ in shown],
                    hovertext=[plain(text(trial)) for trial, *_ in shown],
                    hoverinfo="text",
                )
            )
    rings = (
        (sweep.best, "best", "circle-open", BEST_COLOUR),
        (sweep.baseline, "baseline", "square-open", BASELINE_COLOUR),
    )
    for ringed, name, symbol, tone in rings:
        for trial, x, y in places:
            if trial is ringed:
                marker = {"symbol": symbol, "size": 17, "color": tone, "line": {"width": 2.5}}
                traces.append(signs([(x, y)], marker=marker, name=name, hoverinfo="skip"))
    return traces


def by_trial(
    trials: Iterable[Trial], head: Sequence[str], cells: Callable[[Trial], Sequence[Any]]
) -> dict[str, list[Any]]:
    """Returns a row per trial: name, state, and its ``cells`` under ``head``."""
    return {
        "head": ["Trial", "State", *head],
        "rows": [[trial.label, trial.state_label, *cells(trial)] for trial in trials],
    }


def value_axis(scale: Scale) -> dict[str, Any]:
    """Returns the axis of a metric."""
    return {**(LOG_AXIS if scale.logarithmic else VALUE_AXIS), "range": [*scale.ends]}


def objective_scale(sweep: Sweep, index: int) -> Scale:
    """Returns the scale of all values of objective ``index``."""
    return metric_scale(sweep.scale_values(index), sweep.objectives[index].better)


def _curve_style(sweep: Sweep, trial: Trial) -> tuple[str, dict[str, Any]]:
    if trial is sweep.best:
        return "best", {"color": BEST_COLOUR, "width": 3}
    if trial is sweep.baseline:
        return "baseline", {"color": BASELINE_COLOUR, "width": 2.5, "dash": "dash"}
    state = _known_state(trial)
    dash = "dot" if state == STOPPED else "solid"
    return STATE_LABELS[state], {"color": SYMBOLS[state][1], "width": 1.5, "dash": dash}


def _known_state(trial: Trial) -> str:
    return trial.state if trial.state in SYMBOLS else RUNNING


def _staircase(
    places: Sequence[tuple[float, float]], better: tuple[int, int]
) -> list[tuple[float, float]]:
    """Returns the edge of the front's dominated region, with corners at the worse of two values."""
    x_worse, y_worse = (min if sign > 0 else max for sign in better)
    corners = [places[0]]
    for before, after in itertools.pairwise(places):
        corners += [(x_worse(before[0], after[0]), y_worse(before[1], after[1])), after]
    return corners
