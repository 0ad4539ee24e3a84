"""Charts of a sweep over its parameters: all together, one by one, and their importances."""

import statistics
from typing import Any

import plotly.graph_objects as go

from qdmr_ray.report.charts import Chart, plain, row_axis, scatter
from qdmr_ray.report.summary import with_unit
from qdmr_ray.report.sweep.charts import (
    BEST_COLOUR,
    by_trial,
    describe,
    marks,
    objective_scale,
    value_axis,
)
from qdmr_ray.report.sweep.data import MISSING, STOPPED, Sweep, Trial
from qdmr_ray.report.sweep.scales import NOT_USED, Scale, parameter_scale

# Heights in CSS pixels.
LOW, PARALLEL_HEIGHT = 250, 420
ROW = 36
# Axes closer than this would hide each other's labels; the chart becomes wider instead.
AXIS_DISTANCE = 150
NARROWEST_PARALLEL = 700
# Shades of a line from the worst value to the best.
SHADES = 7
# A golden share spreads the trials of a category evenly, whatever their number.
GOLDEN = 0.6180339887
# Trials, and lines that still have to meet, are spread over these shares of a category's width.
SPREAD, LINE_SPREAD = 0.6, 0.3
FEWEST_FOR_MEDIAN = 3
# Longer labels of choices are cut; the tooltip shows them whole.
LONGEST_LABEL = 16

# A label beside an axis of the parallel coordinates.
_TICK = {
    "showarrow": False,
    "xanchor": "left",
    "xshift": 4,
    "bgcolor": "var(--card)",
    "opacity": 0.85,
    "borderpad": 1,
    "font": {"color": "var(--ink)", "size": 11},
}


def draw_parallel(sweep: Sweep) -> Chart | None:
    """Draws a line per trial across one axis per parameter and one per objective; the most
    important parameter stands beside the objectives. A trial that lacks a value has no line;
    returns ``None`` where all do."""
    trials = [trial for trial in sweep.searched if None not in trial.values]
    names = sweep.parameters[::-1]
    if not trials or not names:
        return None
    scales = [_parameter_scale(sweep, name) for name in names]
    scales += [objective_scale(sweep, index) for index in range(len(sweep.objectives))]
    short = [sweep.short[name] for name in names]
    metrics = [objective.full_label for objective in sweep.objectives]
    logarithmic = [" (log)" if sweep.space[name].get("log") else "" for name in names]
    labels = [*map("".join, zip(short, logarithmic, strict=True)), *metrics]
    better = sweep.objectives[0].better
    # The best is drawn last, above the others.
    trials.sort(key=lambda trial: (trial is sweep.best, (trial.values[0] or 0.0) * better))
    traces = []
    for place, trial in enumerate(trials):
        settings = [trial.settings.get(name, MISSING) for name in names]
        across = [
            round(jittered(trial, scale, value, LINE_SPREAD), 4)
            for scale, value in zip(scales, [*settings, *trial.values], strict=True)
        ]
        tone = shade(trial.values[0] or 0.0, scales[len(names)], better)
        best = trial is sweep.best
        line = {
            "color": BEST_COLOUR if best else f"var(--v{tone})",
            "width": 3 if best else 1.8,
            "dash": "dot" if trial.state == STOPPED else "solid",
        }
        text = plain(describe(sweep, trial))
        shown = {"uid": f"thread{place}", "meta": trial.id, "hovertext": text, "hoverinfo": "text"}
        traces.append(scatter(enumerate(across), line=line, **shown))
    upright = {"type": "line", "y0": 0, "y1": 1, "line": {"color": "var(--axis)", "width": 1.5}}
    heads = [f"<b>{plain(_short(text, 24))}</b>" for text in labels]
    on_top = {"side": "top", "tickangle": 0, "ticks": "", "showline": False}
    columns = {"tickvals": list(range(len(scales))), "ticktext": heads}
    layout = {
        "xaxis": {**on_top, **columns, "range": [-0.45, len(scales) - 0.4]},
        "yaxis": {"visible": False, "range": [-0.03, 1.03]},
        "shapes": [{**upright, "x0": x, "x1": x} for x in range(len(scales))],
        "annotations": [
            {**_TICK, "x": x, "y": round(place, 4), "text": plain(_short(text))}
            for x, scale in enumerate(scales)
            for place, text in scale.ticks
        ],
        "dragmode": "select",
        "showlegend": False,
    }
    return Chart.of(
        traces,
        layout,
        title="All parameters together",
        remark="a line per trial; draw a box over a part of an axis to select the trials there, "
        "with Shift another box; a double click clears",
        summary=f"{len(trials)} trials across {', '.join(labels)}",
        height=PARALLEL_HEIGHT,
        width=max(NARROWEST_PARALLEL, AXIS_DISTANCE * len(scales)),
        table=by_trial(
            trials[::-1],
            [*short, *metrics],
            lambda trial: [*(trial.taken(name, NOT_USED) for name in names), *trial.values],
        ),
    )


def draw_slices(sweep: Sweep, index: int) -> list[Chart]:
    """Draws objective ``index`` over each parameter, by importance; empty without values."""
    trials = [trial for trial in sweep.searched if trial.values[index] is not None]
    return [_slice(sweep, index, name, trials) for name in sweep.parameters] if trials else []


def draw_importances(sweep: Sweep) -> Chart | None:
    """Draws a bar per parameter, the longest first; returns ``None`` where they are not known."""
    ranked = sorted(sweep.importances.items(), key=lambda item: -item[1])
    if not ranked:
        return None
    names = [sweep.short[name] for name, _ in ranked]
    named = [(name, 100 * share) for name, share in ranked]
    bars = go.Bar(
        x=[share for _, share in named],
        y=list(range(len(names))),
        orientation="h",
        marker={"color": "var(--s0)"},
        text=[f"{share:.1f} %" for _, share in named],
        textposition="outside",
        cliponaxis=False,
        hovertext=[f"{plain(name)}: {share:.1f} %" for name, share in named],
        hoverinfo="text",
    )
    words = ", ".join(f"{sweep.short[name]} {share:.0f} %" for name, share in named)
    longest = {"visible": False, "range": [0, 1.2 * max(named[0][1], 1e-9)]}
    return Chart.of(
        [bars],
        {"xaxis": longest, "yaxis": row_axis(names), "bargap": 0.5},
        title=f"Importance for {sweep.objectives[0].full_label}",
        remark="share of the differences that it explains",
        summary=f"Importance of each parameter: {words}",
        height=ROW * len(names) + 24,
        table={
            "head": ["Parameter", "Importance %"],
            "rows": [[name, round(share, 2)] for name, share in named],
        },
    )


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
    x_scale, y_scale = _parameter_scale(sweep, name), objective_scale(sweep, index)
    places = []
    for trial in trials:
        x = jittered(trial, x_scale, trial.settings.get(name, MISSING))
        places.append((trial, round(x, 4), y_scale.held(trial.values[index])))
    remarks = ["log"] if x_scale.logarithmic else []
    # Importances are those of the first objective.
    if index == 0 and name in sweep.importances:
        remarks.append(f"importance {100 * sweep.importances[name]:.1f} %")

    def text(trial: Trial) -> str:
        value = with_unit(objective, trial.values[index])
        return f"{trial.title}: {short} {trial.taken(name, NOT_USED)}, {value}"

    layout = {
        "shapes": _medians(sweep, index, name, x_scale, y_scale),
        "xaxis": {
            "tickvals": [place for place, _ in x_scale.ticks],
            "ticktext": [plain(_short(text)) for _, text in x_scale.ticks],
            "range": [-0.05, 1.05],
        },
        "yaxis": value_axis(y_scale),
        "showlegend": False,
    }
    return Chart.of(
        marks(sweep, places, text),
        layout,
        title=short,
        remark=", ".join(remarks),
        summary=f"{objective.full_label} of {len(trials)} trials over {name}",
        height=LOW,
        table=by_trial(
            trials,
            [short, objective.full_label],
            lambda trial: [trial.taken(name, NOT_USED), trial.values[index]],
        ),
    )


def _medians(
    sweep: Sweep, index: int, name: str, x_scale: Scale, y_scale: Scale
) -> list[dict[str, Any]]:
    """Returns a bar at the median of each category, of the trials that count."""
    by_place: dict[tuple[float, float], list[float]] = {}
    for trial in filter(sweep.counts, sweep.searched):
        setting, value = trial.settings.get(name, MISSING), trial.values[index]
        half = SPREAD * x_scale.room(setting) / 2
        if half and value is not None:
            by_place.setdefault((x_scale.place(setting), half), []).append(value)
    bar = {"type": "line", "opacity": 0.55, "line": {"color": "var(--ink)", "width": 2}}
    shapes = []
    for (place, half), values in by_place.items():
        if len(values) >= FEWEST_FOR_MEDIAN:
            y = y_scale.held(statistics.median(values))
            shapes.append({**bar, "x0": place - half, "x1": place + half, "y0": y, "y1": y})
    return shapes


def _short(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _parameter_scale(sweep: Sweep, name: str) -> Scale:
    with_value = [trial for trial in sweep.searched if any(v is not None for v in trial.values)]
    observed = [trial.settings.get(name, MISSING) for trial in with_value]
    return parameter_scale(sweep.space[name], observed)
