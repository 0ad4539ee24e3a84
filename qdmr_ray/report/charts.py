"""Curves of the training and the spread of the gains, drawn as SVG without a library.

Each chart carries a summary in words for those who can't see it, and the numbers that the page's
script reads out under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from qdmr_ray.evaluate.names import INPUT, label
from qdmr_ray.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes
from qdmr_ray.report.evaluation import Evaluation
from qdmr_ray.report.run_folder import StageCurves

# Height of a stage's strip of gains, in the SVG's own units.
ROW = 34
# More points than this cannot be told apart at the width of a chart.
MOST_POINTS = 240
# Below this many points a curve is drawn as it is.
FEWEST_TO_SMOOTH = 16
# The running mean covers this fraction of a curve.
SMOOTHING_FRACTION = 1 / 12
# Positive curves that fall by more than this factor read better on a logarithmic axis.
LOG_FACTOR = 25.0
# Shares of the raw values that may be left outside the axis at either end, and by what factor they
# must widen it before they are: one spike must not flatten the rest.
OUTLIERS = 0.02
OUTLIER_FACTOR = 1.6

# The same scalar of several domains shares a chart; each domain has its own colour throughout.
DOMAINS = ("source", "s2t", "target", "ground_truth")
# Families of scalars that share a chart.
FAMILIES = ("time", "learning_rate", "gradient_norm")
COLOURS = 6
PLAIN_COLOUR = COLOURS - 1
# Scalars that say how fast it ran rather than how well, shown apart.
HOUSEKEEPING = ("time", "learning_rate", "data_wait", "per_second", "memory", "workers")

Points = list[tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: ``points`` are what is read out, thinned; ``raw`` and ``smooth`` are drawn."""

    label: str
    colour: int
    raw: Points
    smooth: Points
    missing: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart; ``data`` is what the page's script reads, all of it JSON."""

    title: str
    svg: str
    series: list[Series]
    logarithmic: bool
    remark: str
    data: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class StageCharts:
    """The charts of one stage; ``zero`` names the scalars that are 0 throughout."""

    main: list[Chart]
    housekeeping: list[Chart]
    zero: list[str]


def draw_stage(curves: StageCurves) -> StageCharts:
    """Small multiples of every scalar that a stage logged."""
    grouped: dict[str, list[tuple[str, int, Points]]] = {}
    zero = []
    for key, (iterations, values) in curves.scalars.items():
        if any(values) or None in values:
            title, name = _chart_of(key)
            chart = grouped.setdefault(title, [])
            colour = PLAIN_COLOUR if name == key else len(chart) % COLOURS
            colour = DOMAINS.index(name) if name in DOMAINS else colour
            points: Points = list(zip(map(float, iterations), values, strict=True))
            chart.append((name.replace("_", " "), colour, points))
        else:
            zero.append(key)
    drawn = [
        (title, draw_curves(title.replace("_", " "), lines)) for title, lines in grouped.items()
    ]
    return StageCharts(
        main=[chart for title, chart in drawn if not _is_housekeeping(title)],
        housekeeping=[chart for title, chart in drawn if _is_housekeeping(title)],
        zero=zero,
    )


def draw_curves(title: str, lines: Sequence[tuple[str, int, Points]]) -> Chart:
    """One chart of ``(label, colour, points)`` over the iteration, in increasing order.

    Values of ``None`` (not finite) leave a gap.
    """
    series = [_series(*line) for line in lines]
    values = [y for line in series for _, y in (*line.raw, *line.smooth) if y is not None]
    logarithmic = wants_log(values)
    low, high = _value_range(series, logarithmic)
    every_x = [x for line in series for x, _ in line.raw]
    axes = Axes(min(every_x), max(every_x), low, high, logarithmic)
    clipped = any(y is not None and not low <= y <= high for line in series for _, y in line.raw)
    missing = sum(line.missing for line in series)
    remarks = [
        *(["log scale"] if logarithmic else []),
        *(["peaks cut off"] if clipped else []),
        *([f"{missing} value{'s' * (missing != 1)} not finite"] if missing else []),
    ]
    summary = f"{title} over the iteration; " + "; ".join(_in_words(line) for line in series)
    paths = "".join(_draw_series(line, axes) for line in series)
    cursor = (
        f'<g class="cursor" visibility="hidden"><line y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        + "".join(f'<circle r="3.5" class="s{line.colour}"/>' for line in series)
        + "</g>"
    )
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{axes.draw('iteration')}"
        f'<svg x="{LEFT}" y="{TOP}" width="{axes.width}" height="{axes.height}" '
        f'viewBox="{LEFT} {TOP} {axes.width} {axes.height}">{paths}</svg>{cursor}</svg>'
    )
    data: dict[str, object] = {
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "width": WIDTH,
        "series": [
            {
                "label": line.label,
                "points": [
                    [x, _short(y), round(axes.x(x), 1), None if y is None else round(axes.y(y), 1)]
                    for x, y in line.smooth
                ],
            }
            for line in series
        ],
    }
    return Chart(
        title=title,
        svg=svg,
        series=series,
        logarithmic=logarithmic,
        remark=", ".join(remarks),
        data=data,
    )


def draw_gains(evaluation: Evaluation, metric: str, unit: str) -> str:
    """A strip per stage with one dot per photograph: the metric's change from the input.

    Empty where fewer than two photographs have both figures.
    """
    gains: dict[str, list[tuple[str, float]]] = {}
    for stage in evaluation.stages:
        for image in evaluation.per_image:
            before = image.figures.get(INPUT, {}).get(metric)
            after = image.figures.get(stage, {}).get(metric)
            if before is not None and after is not None and math.isfinite(after - before):
                gains.setdefault(stage, []).append((image.name, after - before))
    every = [gain for row in gains.values() for _, gain in row]
    if len(every) < 2:
        return ""
    left, width, height = 104, 480, TOP + ROW * len(gains) + BOTTOM
    low, high = min(0.0, *every), max(0.0, *every)
    margin = 0.06 * (high - low or 1.0)
    axes = Axes(
        low - margin, high + margin, 0.0, 1.0, False, left=left, size=(width, height), rows=True
    )
    parts = [axes.draw(f"gain over the input{f' ({unit})' if unit else ''}, a dot per photograph")]
    parts.append(
        f'<line class="zero" x1="{axes.x(0):.1f}" x2="{axes.x(0):.1f}" y1="{TOP}" '
        f'y2="{height - BOTTOM}"/>'
    )
    for index, (stage, row) in enumerate(gains.items()):
        y = TOP + ROW * (index + 0.5)
        mean = sum(gain for _, gain in row) / len(row)
        parts.append(f'<text class="row" x="{left - 12}" y="{y + 4:.1f}">{escape(label(stage))}')
        parts.append(f'</text><line class="strip" x1="{left}" x2="{width - RIGHT}" y1="{y}"')
        parts.append(f' y2="{y}"/>')
        for name, gain in row:
            parts.append(
                f'<circle class="dot s{index % 6}" cx="{axes.x(gain):.1f}" cy="{y}" r="5">'
                f"<title>{escape(name)}: {gain:+.2f} {escape(unit)}</title></circle>"
            )
        parts.append(
            f'<path class="mean" d="M{axes.x(mean):.1f} {y - 11}v22"><title>mean {mean:+.2f} '
            f"{escape(unit)}</title></path>"
        )
    words = "; ".join(
        f"{label(stage)} from {min(g for _, g in row):+.2f} to {max(g for _, g in row):+.2f}"
        for stage, row in gains.items()
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"Gain of each photograph over its input: {words}")}">'
        + "".join(parts)
        + "</svg>"
    )


def _chart_of(key: str) -> tuple[str, str]:
    """Title of the chart that a scalar belongs to, and its name in there.

    ``codebook/source/used`` is ``source`` in ``codebook/used``, ``image_discriminator/s2t_logit``
    is ``s2t`` in ``image_discriminator/logit``.
    """
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


def _series(label: str, colour: int, points: Points) -> Series:
    smooth = _smooth(points) if len(points) >= FEWEST_TO_SMOOTH else points
    return Series(
        label=label,
        colour=colour,
        raw=_thin(points, spikes=True),
        smooth=_thin(smooth, spikes=False),
        missing=sum(y is None for _, y in points),
    )


def _smooth(points: Points) -> Points:
    """Running mean around each point; gaps stay gaps and add nothing.

    Towards the ends it narrows, so that it doesn't lag behind a slope, to a third of its width.
    """
    reach = max(2, round(len(points) * SMOOTHING_FRACTION / 2))
    sums, counts = [0.0], [0]
    for _, y in points:
        sums.append(sums[-1] + (y or 0.0))
        counts.append(counts[-1] + (y is not None))
    smoothed: Points = []
    for index, (x, y) in enumerate(points):
        near = max(reach // 3, min(reach, index, len(points) - 1 - index))
        first, last = max(0, index - near), min(len(points), index + near + 1)
        mean = (sums[last] - sums[first]) / max(1, counts[last] - counts[first])
        smoothed.append((x, None if y is None else mean))
    return smoothed


def _thin(points: Points, *, spikes: bool) -> Points:
    """At most ``MOST_POINTS``: of each run the lowest and highest where ``spikes``, else one."""
    if len(points) <= MOST_POINTS:
        return points
    kept: Points = []
    buckets = MOST_POINTS // (2 if spikes else 1)
    for index in range(buckets):
        run = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        finite = [(x, y) for x, y in run if y is not None]
        if not finite:
            kept.append(run[0])
        elif spikes:
            extremes = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
            kept.extend(sorted(extremes))
        else:
            kept.append(points[-1] if index == buckets - 1 else run[0])
    return kept


def wants_log(values: Sequence[float]) -> bool:
    """Whether the values read better on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FACTOR


def _value_range(series: Sequence[Series], logarithmic: bool) -> tuple[float, float]:
    """All of the smoothed curves and, but for outliers, of the raw ones, with some air."""
    raw = sorted(y for line in series for _, y in line.raw if y is not None)
    smooth = [y for line in series for _, y in line.smooth if y is not None]
    if not raw:
        return 0.0, 1.0
    skipped = int(len(raw) * OUTLIERS)
    low, high = min([raw[skipped], *smooth]), max([raw[-1 - skipped], *smooth])
    if logarithmic or raw[-1] - raw[0] <= OUTLIER_FACTOR * (high - low):
        low, high = min(low, raw[0]), max(high, raw[-1])
    if logarithmic:
        return low / 1.15, high * 1.15
    # Where all values are equal, any width will do that keeps the line in the middle.
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    # Losses don't go below 0: the axis should not suggest it.
    return (max(0.0, low - margin) if low >= 0 and high > low else low - margin), high + margin


def _draw_series(series: Series, axes: Axes) -> str:
    colour = f"s{series.colour}"
    drawn = f'<path class="smooth {colour}" d="{_path(series.smooth, axes)}"/>'
    if series.raw != series.smooth:
        return f'<path class="raw {colour}" d="{_path(series.raw, axes)}"/>{drawn}'
    return drawn


def _path(points: Points, axes: Axes) -> str:
    """Line segments; a single point between gaps becomes a dot (round caps draw length 0)."""
    parts = []
    pen_down = False
    for x, y in points:
        if y is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{axes.x(x):.1f} {axes.y(y):.1f}")
        if not pen_down:
            parts.append("h0")
        pen_down = True
    return "".join(parts)


def _in_words(series: Series) -> str:
    finite = [(x, y) for x, y in series.smooth if y is not None]
    if not finite:
        return f"{series.label} has no finite value"
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    return f"{series.label} from {y0:.3g} at {x0:.0f} to {y1:.3g} at {x1:.0f}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _is_housekeeping(title: str) -> bool:
    return any(part in title for part in HOUSEKEEPING)
