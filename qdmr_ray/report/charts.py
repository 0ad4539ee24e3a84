"""Charts of a run as Plotly figures: the curves of its training and the spread of its gains. Python
builds the figures, ``report.js`` draws them. Colours are written as ``var(--name)``: the script
replaces them by the values of the page's style sheet, in light and dark. Text from files goes
through ``plain``, since Plotly renders a part of HTML in names and labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple, Self

import plotly.graph_objects as go

from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import label
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.report.run_folder import StageCurves
from qdmr_ray.report.summary import photograph_gain

# Heights in CSS pixels: of a chart, and of a stage's strip of gains with its labels.
HEIGHT = 240
ROW, BELOW_ROWS = 44, 58
# More points than this cannot be told apart at the width of a chart.
MOST_POINTS = 240
# Below this many points a curve is drawn as it is.
FEWEST_TO_SMOOTH = 16
# The running mean covers this fraction of a curve.
SMOOTHING_FRACTION = 1 / 12
# Positive curves that fall by more than this factor read better on a logarithmic axis.
LOG_FACTOR = 25.0
# Shares of the raw values that may lie outside the axis at either end, and the factor by which they
# must widen it before they do: one spike must not flatten the rest.
OUTLIERS = 0.02
OUTLIER_FACTOR = 1.6
# Over fewer iterations than this, every tick is a whole one.
FEW_ITERATIONS = 8

# The same scalar of several domains shares a chart; each domain has its own colour throughout.
DOMAINS = ("source", "s2t", "target", "ground_truth")
# Families of scalars that share a chart.
FAMILIES = ("time", "learning_rate", "gradient_norm")
COLOURS = 6
PLAIN_COLOUR = COLOURS - 1
# These scalars measure how fast the run was rather than how well, and are shown apart.
HOUSEKEEPING = (
    *("time", "learning_rate", "data_wait", "per_second", "memory", "workers"),
    "flops_utilization",
)

Points = list[tuple[float, float | None]]

# Labels of a linear axis keep as many digits as tell its ticks apart (2×10⁻⁴); those of a
# logarithmic one are written out, as Plotly would shorten them to their first digit.
VALUE_AXIS = {"exponentformat": "power", "separatethousands": False}
# From four ticks on, Plotly labels all nine digits of a decade, too many for a small chart.
LOG_AXIS = {"type": "log", "tickformat": "~g", "nticks": 3}
ITERATION_AXIS = {"title": {"text": "iteration"}, "exponentformat": "none"}

_TEXT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12}
_AXIS = {
    "gridcolor": "var(--line)",
    "linecolor": "var(--axis)",
    "zeroline": False,
    "automargin": True,
    "nticks": 6,
    "separatethousands": True,
    "tickcolor": "var(--axis)",
    "title": {"standoff": 8},
}
# All charts of a page share this template; it is written into the page once.
TEMPLATE: dict[str, Any] = {
    "layout": {
        "font": {**_TEXT, "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [f"var(--s{index})" for index in range(COLOURS)],
        # Half of the last tick's label needs room on the right, or Plotly leaves it out.
        "margin": {"l": 8, "r": 28, "t": 10, "b": 8},
        "xaxis": {**_AXIS, "showgrid": False, "ticks": "outside", "ticklen": 4, "showline": True},
        "yaxis": _AXIS,
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--card)",
            "bordercolor": "var(--axis)",
            "font": {**_TEXT, "color": "var(--ink)"},
            "namelength": -1,
        },
        # The legend stands above the plot, where it hides no data however many lines it takes.
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    }
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Plotly figure as JSON; ``summary`` describes it for those who can't see it. ``table`` has
    ``head`` and ``rows`` of the numbers behind it; without one, the page's script makes it, with a
    column for each of the figure's traces."""

    title: str
    summary: str
    figure: dict[str, Any]
    height: int = HEIGHT
    # The chart's minimum width; where the page has less room, the chart scrolls sideways.
    width: int = 0
    remark: str = ""
    table: dict[str, list[Any]] | None = None

    @classmethod
    def of(cls, traces: Sequence[Any], layout: dict[str, Any], **others: Any) -> Self:
        """Returns the chart of a figure, which Plotly checks; ``others`` are the chart's fields."""
        figure = go.Figure(data=list(traces), layout=layout).to_plotly_json()
        # The page has a template of its own.
        figure["layout"].pop("template", None)
        return cls(figure=figure, **others)

    @property
    def data(self) -> dict[str, Any]:
        """The chart for the page's script, all of it JSON."""
        return {**self.figure, "table": self.table}


class Strip(NamedTuple):
    """A row of dots, each with a text, a value, and its trial, if any."""

    name: str
    colour: str
    dots: Sequence[tuple[str, float, str | None]]


def plain(text: str) -> str:
    """Escapes ``text`` for Plotly, which renders ``<b>``, ``<a href>`` and entities."""
    return escape(text, quote=False).replace("\n", "<br>")


def scatter(points: Iterable[tuple[float, float | None]], **style: Any) -> go.Scatter:
    """Returns a line through ``points``, or a sign at each if ``style`` says so."""
    x, y = zip(*points, strict=True)
    return go.Scatter(x=[*x], y=[*y], **{"mode": "lines", **style})


def colour(index: int) -> str:
    """Returns a colour of the page's palette."""
    return f"var(--s{index % COLOURS})"


def draw_stage(curves: StageCurves) -> dict[str, Any]:
    """Draws small multiples of every scalar that a stage logged: ``charts``, and ``housekeeping``
    charts of its speed. ``zero`` names the scalars that are 0 throughout."""
    grouped: dict[str, list[tuple[str, int, Points]]] = {}
    zero = []
    for key, (iterations, values) in curves.scalars.items():
        if not any(values) and None not in values:
            zero.append(key)
            continue
        title, name = _chart_of(key)
        lines = grouped.setdefault(title, [])
        tone = PLAIN_COLOUR if name == key else len(lines) % COLOURS
        tone = DOMAINS.index(name) if name in DOMAINS else tone
        points: Points = list(zip(map(float, iterations), values, strict=True))
        lines.append((name.replace("_", " "), tone, points))
    charts: list[Chart] = []
    housekeeping: list[Chart] = []
    for title, lines in grouped.items():
        is_housekeeping = any(part in title for part in HOUSEKEEPING)
        chart = draw_curves(title.replace("_", " "), lines)
        (housekeeping if is_housekeeping else charts).append(chart)
    return {"charts": charts, "housekeeping": housekeeping, "zero": zero}


def draw_curves(title: str, lines: Sequence[tuple[str, int, Points]]) -> Chart:
    """Draws ``(label, colour, points)`` over the iteration, in increasing order; ``None`` (not
    finite) leaves a gap. The tooltip reads out the running mean; the logged values are a thin
    line."""
    raw = [_thin(points, spikes=True) for _, _, points in lines]
    smooth = [
        _thin(_smooth(points) if len(points) >= FEWEST_TO_SMOOTH else points, spikes=False)
        for _, _, points in lines
    ]
    known = [y for points in (*raw, *smooth) for _, y in points if y is not None]
    logarithmic = wants_log(known)
    low, high = _value_range(raw, smooth, logarithmic)
    clipped = any(not low <= y <= high for points in raw for _, y in points if y is not None)
    missing = sum(y is None for _, _, points in lines for _, y in points)
    remarks = {
        "log scale": logarithmic,
        "peaks cut off": clipped,
        f"{missing} value{'s' * (missing != 1)} not finite": missing,
    }
    traces = []
    for (_, tone, _), behind, mean in zip(lines, raw, smooth, strict=True):
        if behind != mean:
            quiet = {"opacity": 0.35, "hoverinfo": "skip", "showlegend": False}
            traces.append(_curve(behind, line={"color": colour(tone), "width": 1}, **quiet))
    for (name, tone, _), mean in zip(lines, smooth, strict=True):
        shown = plain(name if name != title else "value")
        # A line has no width where gaps leave a single point, which therefore needs a marker.
        mode = "lines+markers" if _has_lone_point(mean) else "lines"
        line = {"color": colour(tone), "width": 2}
        traces.append(_curve(mean, line=line, name=shown, mode=mode, marker={"size": 5}))
    value_axis = {**LOG_AXIS} if logarithmic else {**VALUE_AXIS}
    if clipped:
        value_axis["range"] = [low, high]
    elif not logarithmic and known and min(known) >= 0:
        # Losses don't go below 0, so the axis should not either.
        value_axis["rangemode"] = "nonnegative"
    words = [_in_words(line[0], mean) for line, mean in zip(lines, smooth, strict=True)]
    layout = {
        "xaxis": iteration_axis([x for points in raw for x, _ in points]),
        "yaxis": value_axis,
        "hovermode": "x unified",
        "showlegend": len(lines) > 1,
    }
    return Chart.of(
        traces,
        layout,
        title=title,
        summary=f"{title} over the iteration; {'; '.join(words)}",
        remark=", ".join(remark for remark, applies in remarks.items() if applies),
    )


def _curve(points: Points, **style: Any) -> go.Scatter:
    return scatter([(x, y if y is None else float(f"{y:.5g}")) for x, y in points], **style)


def iteration_axis(iterations: Sequence[float]) -> dict[str, Any]:
    """Returns the axis of these iterations: numbers written out, ticks at whole iterations."""
    few = max(iterations) - min(iterations) < FEW_ITERATIONS
    return {**ITERATION_AXIS, "dtick": 1} if few else ITERATION_AXIS


def draw_gains(evaluation: Evaluation, metric: str) -> Chart | None:
    """Draws a strip per stage with one dot per photograph: the metric's change from the input.
    Returns ``None`` where fewer than two photographs have both values."""
    unit = metric_info(metric).full_label
    gains: dict[str, dict[str, float]] = {}
    for stage in evaluation.stages:
        for image in evaluation.per_image:
            gain = photograph_gain(image, stage, metric)
            if gain is not None:
                gains.setdefault(stage, {})[image.name] = gain
    if sum(map(len, gains.values())) < 2:
        return None
    words = [
        f"{label(stage)} from {min(row.values()):+.2f} to {max(row.values()):+.2f}"
        for stage, row in gains.items()
    ]
    strips = []
    for tone, (stage, row) in enumerate(gains.items()):
        dots = [(f"{name}: {gain:+.2f} {unit}", gain, None) for name, gain in row.items()]
        strips.append(Strip(label(stage), colour(tone), dots))
    names = dict.fromkeys(name for row in gains.values() for name in row)
    return draw_strips(
        strips,
        axis=f"gain in {unit}",
        line=0.0,
        title="Photograph by photograph",
        summary=f"Gain of each photograph over its input: {'; '.join(words)}",
        remark="a dot per photograph, the bar marks the mean",
        table={
            "head": ["Photograph", *(f"{label(stage)} gain" for stage in gains)],
            "rows": [[name, *(row.get(name) for row in gains.values())] for name in names],
        },
    )


def draw_strips(strips: Sequence[Strip], *, axis: str, line: float | None, **others: Any) -> Chart:
    """Draws a row of dots per strip with a bar at their mean, and a dotted line at ``line``;
    ``others`` are fields of the chart."""
    every = [value for strip in strips for _, value, _ in strip.dots]
    every += [] if line is None else [line]
    margin = 0.06 * (max(every) - min(every)) or abs(every[0]) * 0.05 or 1.0
    shared = {"mode": "markers", "hoverinfo": "text", "showlegend": False}
    traces = []
    for row, strip in enumerate(strips):
        values = [value for _, value, _ in strip.dots]
        traces.append(
            go.Scatter(
                x=values,
                y=[row] * len(values),
                marker={"color": strip.colour, "size": 11, "opacity": 0.6},
                hovertext=[plain(text) for text, _, _ in strip.dots],
                customdata=[trial for *_, trial in strip.dots],
                uid=f"strip{row}",
                **shared,
            )
        )
        if values:
            mean = sum(values) / len(values)
            bar = {"symbol": "line-ns", "size": 13, "line": {"width": 3, "color": "var(--ink)"}}
            text = f"{plain(strip.name)}: mean {mean:.4g}"
            traces.append(scatter([(mean, row)], marker=bar, hovertext=[text], **shared))
    dotted = {"color": "var(--muted)", "dash": "dot", "width": 1.5}
    upright = {"type": "line", "x0": line, "x1": line, "yref": "paper", "y0": 0, "y1": 1}
    layout = {
        "xaxis": {
            **VALUE_AXIS,
            "title": {"text": plain(axis)},
            "showgrid": True,
            "range": [min(every) - margin, max(every) + margin],
        },
        "yaxis": row_axis([strip.name for strip in strips]),
        "shapes": [] if line is None else [{**upright, "line": dotted}],
    }
    return Chart.of(traces, layout, height=ROW * len(strips) + BELOW_ROWS, **others)


def row_axis(names: Sequence[str]) -> dict[str, Any]:
    """Returns a vertical axis with a row per name, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plain(name) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "ticklabelstandoff": 6,
        "tickfont": {"size": 13, "color": "var(--ink)"},
    }


def wants_log(values: Sequence[float]) -> bool:
    """Returns whether the values read better on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FACTOR


def _chart_of(key: str) -> tuple[str, str]:
    """Returns the title of a scalar's chart, and the scalar's name in that chart:
    ``codebook/source/used`` is ``source`` in ``codebook/used``, ``image_discriminator/s2t_logit``
    is ``s2t`` in ``image_discriminator/logit``."""
    parts = key.split("/")
    if parts[0] in FAMILIES and len(parts) > 1:
        return parts[0], "/".join(parts[1:])
    for index, part in enumerate(parts):
        for domain in DOMAINS:
            if part == domain and len(parts) > 1:
                return "/".join(parts[:index] + parts[index + 1 :]), domain
            if part.startswith(f"{domain}_") and index > 0:
                rest = part.removeprefix(f"{domain}_")
                return "/".join([*parts[:index], rest, *parts[index + 1 :]]), domain
    return key, key


def _smooth(points: Points) -> Points:
    """Returns the running mean around each point; gaps stay gaps and add nothing. Towards the ends
    its window narrows, to a third of its width, so that it doesn't lag behind a slope."""
    reach = max(2, round(len(points) * SMOOTHING_FRACTION / 2))
    sums = [*accumulate((y or 0.0 for _, y in points), initial=0.0)]
    counts = [*accumulate((y is not None for _, y in points), initial=0)]
    smoothed: Points = []
    for index, (x, y) in enumerate(points):
        near = max(reach // 3, min(reach, index, len(points) - 1 - index))
        first, last = max(0, index - near), min(len(points), index + near + 1)
        mean = (sums[last] - sums[first]) / max(1, counts[last] - counts[first])
        smoothed.append((x, None if y is None else mean))
    return smoothed


def _thin(points: Points, *, spikes: bool) -> Points:
    """Returns at most ``MOST_POINTS``: per bucket the extremes if ``spikes``, else one point."""
    if len(points) <= MOST_POINTS:
        return points
    kept: Points = []
    buckets = MOST_POINTS // (2 if spikes else 1)
    for index in range(buckets):
        run = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        finite = [point for point in run if point[1] is not None]
        if spikes and finite:
            kept += sorted({min(finite, key=itemgetter(1)), max(finite, key=itemgetter(1))})
        else:
            kept.append(points[-1] if finite and index == buckets - 1 else run[0])
    return kept


def _value_range(
    raw: Sequence[Points], smooth: Sequence[Points], logarithmic: bool
) -> tuple[float, float]:
    """Returns the range of all running means and, but for outliers, of the logged values."""
    logged = sorted(y for points in raw for _, y in points if y is not None)
    means = [y for points in smooth for _, y in points if y is not None]
    if not logged:
        return 0.0, 1.0
    skipped = int(len(logged) * OUTLIERS)
    low, high = min([logged[skipped], *means]), max([logged[-1 - skipped], *means])
    if logarithmic or logged[-1] - logged[0] <= OUTLIER_FACTOR * (high - low):
        return min(low, logged[0]), max(high, logged[-1])
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _has_lone_point(points: Points) -> bool:
    known = [False, *(y is not None for _, y in points), False]
    around = zip(known, known[1:], known[2:], strict=False)
    return any(here and not before and not after for before, here, after in around)


def _in_words(name: str, points: Points) -> str:
    finite = [(x, y) for x, y in points if y is not None]
    if not finite:
        return f"{name} has no finite value"
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    return f"{name} from {y0:.3g} at {x0:,.0f} to {y1:.3g} at {x1:,.0f}"
