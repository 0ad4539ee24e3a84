"""Charts of a sweep as Plotly figures: over its trials, iterations, parameters and variants.

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

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from qdmr_ray.report.charts import (
    LOG_AXIS,
    VALUE_AXIS,
    Chart,
    ChartTable,
    Strip,
    draw_strips,
    figure,
    iteration_axis,
    plain,
    row_axis,
    strips_height,
)
from qdmr_ray.report.sweep.data import (
    FAILED,
    FINISHED,
    MISSING,
    RUNNING,
    STATE_LABELS,
    STOPPED,
    Objective,
    Sweep,
    Trial,
    setting_text,
)
from qdmr_ray.report.sweep.scales import NOT_USED, Scale, metric_scale, parameter_scale

# Heights in CSS pixels.
TALL, LOW, PARALLEL_HEIGHT = 340, 250, 420
ROW = 36
# Axes closer than this would hide each other's labels; the chart becomes wider instead.
AXIS_DISTANCE = 150
NARROWEST_PARALLEL = 700
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
# Shades of a line from the worst value to the best.
SHADES = 7
# A golden share spreads the trials of a category evenly, whatever their number.
GOLDEN = 0.6180339887
# Trials, and lines that still have to meet, are spread over these shares of a category's width.
SPREAD, LINE_SPREAD = 0.6, 0.3
FEWEST_FOR_MEDIAN = 3
# Longer labels of choices are cut; the tooltip shows them whole.
LONGEST_LABEL = 16

Place = tuple[Trial, float, float, str]


def describe(sweep: Sweep, trial: Trial) -> str:
    """Returns some lines about a trial: state, values and settings."""
    values = [
        f"{objective.style.label} {objective.text(value)}"
        for objective, value in zip(sweep.objectives, trial.values, strict=True)
        if value is not None
    ]
    settings = [f"{sweep.short[name]} {setting_text(v)}" for name, v in trial.settings.items()]
    state = STATE_LABELS.get(trial.state, trial.state)
    reason = [trial.error] if trial.error else []
    return "\n".join([f"{trial.title}, {state}", *values, *settings, *reason])


def running_best(sweep: Sweep, index: int) -> list[tuple[int, float]]:
    """Returns ``(number, value)`` of each trial that was better in objective ``index`` than all
    before it. Trials that were stopped early don't count."""
    better = sweep.objectives[index].style.better
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
    known = [value for trial in trials if (value := trial.values[index]) is not None]
    if not known:
        return None
    scale = _objective_scale(sweep, index)
    places: list[Place] = []
    for trial in trials:
        value = trial.values[index]
        if value is not None or trial.state == FAILED:
            y = scale.low if value is None else scale.held(value)
            places.append((trial, trial.number, y, describe(sweep, trial)))
    first, last = trials[0].number, trials[-1].number
    traces = []
    steps = [] if sweep.is_ablation else running_best(sweep, index)
    if steps:
        corners = [*steps, (last, steps[-1][1])]
        line = {"shape": "hv", "color": BEST_COLOUR, "width": 2}
        traces.append(_plain_line(corners, line, "best so far"))
    own = sweep.baseline.values[index] if sweep.baseline else None
    if own is not None:
        level = scale.held(own)
        line = {"dash": "dash", "color": BASELINE_COLOUR, "width": 1.5}
        traces.append(
            _plain_line([(first, level), (last, level)], line, "baseline").update(showlegend=False)
        )
    best = f", the best {objective.text(steps[-1][1])} in trial {steps[-1][0]}" if steps else ""
    return Chart(
        title=f"{objective.label} of each trial",
        remark=objective.style.direction,
        summary=f"{objective.label} of {len(known)} trials by number{best}",
        figure=figure(
            traces + _marks(sweep, places),
            xaxis={**iteration_axis([first, last]), "title": {"text": "trial"}},
            yaxis=_value_axis(scale),
            hovermode="closest",
            showlegend=True,
        ),
        height=TALL,
        table=_by_trial(
            sweep, [place[0] for place in places], [(objective.label, lambda t: t.values[index])]
        ),
    )


def draw_learning_curves(sweep: Sweep, index: int) -> Chart | None:
    """Draws each trial's reports over its iterations; returns ``None`` if there are none."""
    objective = sweep.objectives[index]
    curves = [
        (
            trial,
            sorted(
                (line.iteration, y)
                for line in trial.history
                if (y := line.values[index]) is not None
            ),
        )
        for trial in sweep.searched
    ]
    curves = [(trial, thinned(points)) for trial, points in curves if points]
    if not curves:
        return None
    # The best and the baseline are drawn last, above the others.
    curves.sort(key=lambda curve: (curve[0] is sweep.best, curve[0] is sweep.baseline))
    # Trials that were stopped early, or went wrong, may leave the picture.
    counting = [points for trial, points in curves if sweep.counts(trial)]
    values = [y for points in counting or [points for _, points in curves] for _, y in points]
    named: set[str] = set()
    traces = []
    for place, (trial, points) in enumerate(curves):
        name, line = _curve_style(sweep, trial)
        ends = trial.state in (STOPPED, FAILED) or len(points) == 1
        traces.append(
            go.Scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                mode="lines+markers" if ends else "lines",
                line=line,
                opacity=1.0 if name in ("best", "baseline") else 0.6,
                # Only the end has a sign: there the trial was stopped.
                marker={
                    "symbol": SYMBOLS[_known_state(trial)][0],
                    "size": [0] * (len(points) - 1) + [8],
                    "color": line["color"],
                },
                name=name,
                legendgroup=name,
                showlegend=name not in named,
                uid=f"curve{place}",
                meta=trial.id,
                hovertext=plain(describe(sweep, trial)),
                hovertemplate="iteration %{x}: %{y}<br>%{hovertext}<extra></extra>",
            )
        )
        named.add(name)
    return Chart(
        title=f"{objective.label} while training",
        remark=objective.style.direction,
        summary=f"{objective.label} of {len(curves)} trials over the iteration",
        figure=figure(
            traces,
            xaxis=iteration_axis([step for _, points in curves for step, _ in points]),
            yaxis=_value_axis(metric_scale(values, objective.style.better)),
            hovermode="closest",
            showlegend=True,
        ),
        height=TALL,
        table=ChartTable(
            head=["Trial", "Iteration", objective.label],
            rows=[[trial.label, step, y] for trial, points in curves for step, y in points],
        ),
    )


def draw_parallel(sweep: Sweep) -> Chart | None:
    """Draws a line per trial across one axis per parameter and one per objective; the most
    important parameter stands beside the objectives. A trial that lacks a value has no line;
    returns ``None`` where all do."""
    trials = [trial for trial in sweep.searched if None not in trial.values]
    names = sweep.parameters[::-1]
    if not trials or not names:
        return None
    scales = [_parameter_scale(sweep, name) for name in names]
    scales += [_objective_scale(sweep, index) for index in range(len(sweep.objectives))]
    labels = [
        sweep.short[name] + (" (log)" if sweep.space[name].get("log") else "") for name in names
    ]
    labels += [objective.label for objective in sweep.objectives]
    # The best is drawn last, above the others.
    better = sweep.objectives[0].style.better
    order = sorted(trials, key=lambda trial: (trial is sweep.best, (trial.values[0] or 0) * better))
    traces = []
    for place, trial in enumerate(order):
        settings = [trial.settings.get(name, MISSING) for name in names]
        across = zip(scales, [*settings, *trial.values], strict=True)
        tone = shade(trial.values[0] or 0.0, scales[len(names)], better)
        best = trial is sweep.best
        traces.append(
            go.Scatter(
                x=list(range(len(scales))),
                y=[round(jittered(trial, scale, v, LINE_SPREAD), 4) for scale, v in across],
                mode="lines",
                line={
                    "color": BEST_COLOUR if best else f"var(--v{tone})",
                    "width": 3 if best else 1.8,
                    "dash": "dot" if trial.state == STOPPED else "solid",
                },
                uid=f"thread{place}",
                meta=trial.id,
                hovertext=plain(describe(sweep, trial)),
                hoverinfo="text",
            )
        )
    ticks = [
        {
            "x": x,
            "y": round(place, 4),
            "text": _short(text),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 4,
            "bgcolor": "var(--card)",
            "opacity": 0.85,
            "borderpad": 1,
            "font": {"color": "var(--ink)", "size": 11},
        }
        for x, scale in enumerate(scales)
        for place, text in scale.ticks
    ]
    upright = {"type": "line", "y0": 0, "y1": 1, "line": {"color": "var(--axis)", "width": 1.5}}
    return Chart(
        title="All parameters together",
        remark="a line per trial; draw a box over a part of an axis to select the trials there, "
        "with Shift another box; a double click clears",
        summary=f"{len(trials)} trials across {', '.join(labels)}",
        figure=figure(
            traces,
            xaxis={
                "side": "top",
                "tickangle": 0,
                "tickvals": list(range(len(scales))),
                "ticktext": [f"<b>{plain(_short(text, 24))}</b>" for text in labels],
                "ticks": "",
                "showline": False,
                "range": [-0.45, len(scales) - 0.4],
            },
            yaxis={"visible": False, "range": [-0.03, 1.03]},
            shapes=[{**upright, "x0": x, "x1": x} for x in range(len(scales))],
            annotations=ticks,
            dragmode="select",
            hovermode="closest",
            showlegend=False,
        ),
        height=PARALLEL_HEIGHT,
        width=max(NARROWEST_PARALLEL, AXIS_DISTANCE * len(scales)),
        table=_by_trial(
            sweep,
            order[::-1],
            [
                *((sweep.short[name], lambda t, name=name: _taken(t, name)) for name in names),
                *((o.label, lambda t, i=i: t.values[i]) for i, o in enumerate(sweep.objectives)),
            ],
        ),
    )


def draw_slices(sweep: Sweep, index: int) -> list[Chart]:
    """Draws objective ``index`` over each parameter, by importance; empty without values."""
    trials = [trial for trial in sweep.searched if trial.values[index] is not None]
    return [_slice(sweep, index, name, trials) for name in sweep.parameters] if trials else []


def draw_importances(sweep: Sweep) -> Chart | None:
    """Draws a bar per parameter, the longest first; returns ``None`` where they are not known."""
    shares = sorted(sweep.importances.items(), key=lambda item: -item[1])
    if not shares:
        return None
    names = [sweep.short[name] for name, _ in shares]
    words = ", ".join(f"{sweep.short[name]} {100 * share:.0f} %" for name, share in shares)
    bars = go.Bar(
        x=[100 * share for _, share in shares],
        y=list(range(len(names))),
        orientation="h",
        marker={"color": "var(--s0)"},
        text=[f"{100 * share:.1f} %" for _, share in shares],
        textposition="outside",
        cliponaxis=False,
        hovertext=[f"{plain(name)}: {100 * share:.1f} %" for name, share in shares],
        hoverinfo="text",
    )
    longest = max(100 * shares[0][1], 1e-9)
    return Chart(
        title=f"Importance for {sweep.objectives[0].label}",
        remark="share of the differences that it explains",
        summary=f"Importance of each parameter: {words}",
        figure=figure(
            [bars],
            xaxis={"visible": False, "range": [0, 1.2 * longest]},
            yaxis=row_axis(names),
            bargap=0.5,
            hovermode="closest",
        ),
        height=ROW * len(shares) + 24,
        table=ChartTable(
            head=["Parameter", "Importance %"],
            rows=[[name, round(100 * share, 2)] for name, share in shares],
        ),
    )


def draw_front(sweep: Sweep, first: int, other: int) -> Chart | None:
    """Draws two objectives against each other, and the line of the Pareto front where they are the
    only two. Returns ``None`` where no trial has both values."""
    across, up = sweep.objectives[other], sweep.objectives[first]
    x_scale, y_scale = _objective_scale(sweep, other), _objective_scale(sweep, first)
    both = [
        (trial, x_scale.held(x), y_scale.held(y), describe(sweep, trial))
        for trial in sweep.searched
        if (x := trial.values[other]) is not None and (y := trial.values[first]) is not None
    ]
    if not both:
        return None
    front = sorted([(x, y) for trial, x, y, _ in both if trial in sweep.front])
    traces = []
    if front and len(sweep.objectives) == 2:
        corners = _staircase(front, (across.style.better, up.style.better))
        line = {"color": BEST_COLOUR, "width": 2}
        traces.append(_plain_line(corners, line, "Pareto front"))
    return Chart(
        title=f"{up.style.label} and {across.style.label}",
        remark=f"up: {up.label}, {up.style.direction}",
        summary=f"{up.label} against {across.label} of {len(both)} trials; {len(front)} on the "
        "front",
        figure=figure(
            traces + _marks(sweep, both),
            xaxis={
                **_value_axis(x_scale),
                "title": {"text": plain(f"{across.label} ({across.style.direction})")},
            },
            yaxis=_value_axis(y_scale),
            hovermode="closest",
            showlegend=True,
        ),
        height=TALL,
        table=_by_trial(
            sweep,
            [trial for trial, *_ in both],
            [(up.label, lambda t: t.values[first]), (across.label, lambda t: t.values[other])],
        ),
    )


def draw_variants(sweep: Sweep, index: int) -> Chart | None:
    """Draws a strip per variant with a dot per seed, a bar at the mean, and a dotted line at the
    first variant's mean; returns ``None`` without values."""
    objective, variants = sweep.objectives[index], sweep.searched
    seeded = [sweep.seeded(trial, index) for trial in variants]
    if not any(seeded):
        return None
    means = [sweep.spread(trial, index).mean for trial in variants]
    words = [f"{t.label} {objective.text(mean)}" for t, mean in zip(variants, means, strict=True)]
    strips = [
        Strip(
            name=trial.label,
            colour="var(--s0)",
            dots=[(describe(sweep, seed), value, seed.id) for seed, value in seeds],
        )
        for trial, seeds in zip(variants, seeded, strict=True)
    ]
    return Chart(
        title=objective.label,
        remark="a dot per seed, a bar at the mean, dotted the first variant's",
        summary=f"{objective.label} of each variant: {'; '.join(words)}",
        figure=draw_strips(strips, axis=objective.label, line=means[0]),
        height=strips_height(strips),
        table=ChartTable(
            head=["Variant", "Seed", objective.label],
            rows=[
                [trial.label, str(seed.seed), value]
                for trial, seeds in zip(variants, seeded, strict=True)
                for seed, value in seeds
            ],
        ),
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns at most ``MOST_POINTS``, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return list(points[::-1][::step][::-1])


def shade(value: float, scale: Scale, better: int) -> int:
    """Returns 0 for the worst values of the scale up to ``SHADES - 1`` for the best."""
    fraction = scale.place(value) if better > 0 else 1.0 - scale.place(value)
    return min(SHADES - 1, int(fraction * SHADES))


def jittered(trial: Trial, scale: Scale, value: object, spread: float = SPREAD) -> float:
    """Returns the place of ``value``, moved by the trial's number within its category's width."""
    offset = (trial.number * GOLDEN) % 1.0 - 0.5
    return scale.place(value) + offset * spread * scale.room(value)


def _slice(sweep: Sweep, index: int, name: str, trials: list[Trial]) -> Chart:
    objective, short = sweep.objectives[index], sweep.short[name]
    x_scale, y_scale = _parameter_scale(sweep, name), _objective_scale(sweep, index)
    places: list[Place] = []
    for trial in trials:
        value = trial.values[index]
        assert value is not None
        x = round(jittered(trial, x_scale, trial.settings.get(name, MISSING)), 4)
        text = f"{trial.title}: {short} {_taken(trial, name)}, {objective.text(value)}"
        places.append((trial, x, y_scale.held(value), text))
    remarks = ["log"] if x_scale.logarithmic else []
    # Importances are those of the first objective.
    if index == 0 and name in sweep.importances:
        remarks.append(f"importance {100 * sweep.importances[name]:.1f} %")
    ticks = x_scale.ticks
    return Chart(
        title=short,
        remark=", ".join(remarks),
        summary=f"{objective.label} of {len(trials)} trials over {name}",
        figure=figure(
            _marks(sweep, places),
            shapes=_medians(sweep, index, name, x_scale, y_scale),
            xaxis={
                "tickvals": [place for place, _ in ticks],
                "ticktext": [plain(_short(text)) for _, text in ticks],
                "range": [-0.05, 1.05],
            },
            yaxis=_value_axis(y_scale),
            hovermode="closest",
            showlegend=False,
        ),
        height=LOW,
        table=_by_trial(
            sweep,
            trials,
            [(short, lambda t: _taken(t, name)), (objective.label, lambda t: t.values[index])],
        ),
    )


def _medians(
    sweep: Sweep, index: int, name: str, x_scale: Scale, y_scale: Scale
) -> list[dict[str, Any]]:
    """Returns a bar at the median of each category, of the trials that count."""
    by_place: dict[float, tuple[float, list[float]]] = {}
    for trial in filter(sweep.counts, sweep.searched):
        setting, value = trial.settings.get(name, MISSING), trial.values[index]
        room = x_scale.room(setting)
        if room and value is not None:
            by_place.setdefault(x_scale.place(setting), (room, []))[1].append(value)
    line = {"color": "var(--ink)", "width": 2}
    return [
        {
            "type": "line",
            "x0": place - SPREAD * room / 2,
            "x1": place + SPREAD * room / 2,
            "y0": y_scale.held(statistics.median(values)),
            "y1": y_scale.held(statistics.median(values)),
            "opacity": 0.55,
            "line": line,
        }
        for place, (room, values) in by_place.items()
        if len(values) >= FEWEST_FOR_MEDIAN
    ]


def _marks(sweep: Sweep, places: Sequence[Place]) -> list[go.Scatter]:
    """Returns a sign per trial, a trace per state, and rings around the best and the baseline."""
    traces = []
    for state, (symbol, tone) in SYMBOLS.items():
        shown = [place for place in places if _known_state(place[0]) == state]
        if shown:
            traces.append(
                go.Scatter(
                    x=[x for _, x, _, _ in shown],
                    y=[y for _, _, y, _ in shown],
                    mode="markers",
                    # A sign at the very edge stands for a value beyond it.
                    cliponaxis=False,
                    marker={
                        "symbol": symbol,
                        "size": 10,
                        "color": tone,
                        # The outline separates signs that overlap.
                        "line": {"width": 1, "color": "var(--card)"},
                    },
                    name=STATE_LABELS[state],
                    uid=f"mark-{state}",
                    customdata=[trial.id for trial, *_ in shown],
                    hovertext=[plain(text) for *_, text in shown],
                    hoverinfo="text",
                )
            )
    rings = (
        (sweep.best, "best", "circle-open", BEST_COLOUR),
        (sweep.baseline, "baseline", "square-open", BASELINE_COLOUR),
    )
    for ringed, name, symbol, tone in rings:
        for trial, x, y, _ in places:
            if trial is ringed:
                marker = {"symbol": symbol, "size": 17, "color": tone, "line": {"width": 2.5}}
                traces.append(
                    go.Scatter(
                        x=[x],
                        y=[y],
                        mode="markers",
                        cliponaxis=False,
                        marker=marker,
                        name=name,
                        hoverinfo="skip",
                    )
                )
    return traces


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


def _plain_line(
    corners: Sequence[tuple[float, float]], line: dict[str, Any], name: str
) -> go.Scatter:
    x, y = [x for x, _ in corners], [y for _, y in corners]
    return go.Scatter(x=x, y=y, mode="lines", line=line, name=name, hoverinfo="skip")


def _value_axis(scale: Scale) -> dict[str, Any]:
    low, high = scale.ends
    return {**(LOG_AXIS if scale.logarithmic else VALUE_AXIS), "range": [low, high]}


def _by_trial(
    sweep: Sweep, trials: Iterable[Trial], columns: Sequence[tuple[str, Any]]
) -> ChartTable:
    """Returns a row per trial: name, state, and a column per ``(head, cell of a trial)``."""
    return ChartTable(
        head=["Trial", "State", *(head for head, _ in columns)],
        rows=[
            [t.label, STATE_LABELS.get(t.state, t.state), *(cell(t) for _, cell in columns)]
            for t in trials
        ],
    )


def _taken(trial: Trial, name: str) -> str:
    value = trial.settings.get(name, MISSING)
    return NOT_USED if value is MISSING else setting_text(value)


def _short(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _staircase(
    places: Sequence[tuple[float, float]], better: tuple[int, int]
) -> list[tuple[float, float]]:
    """Returns the edge of the front's dominated region, with corners at the worse of two values."""
    corners = [places[0]]
    for before, after in itertools.pairwise(places):
        worse = [
            min(pair) if sign > 0 else max(pair)
            for pair, sign in zip(zip(before, after, strict=True), better, strict=True)
        ]
        corners += [(worse[0], worse[1]), after]
    return corners


def _parameter_scale(sweep: Sweep, name: str) -> Scale:
    observed = [trial.settings.get(name, MISSING) for trial in sweep.searched if trial.has_value]
    return parameter_scale(sweep.space[name], observed)


def _objective_scale(sweep: Sweep, index: int) -> Scale:
    objective: Objective = sweep.objectives[index]
    return metric_scale(sweep.scale_values(index), objective.style.better)
