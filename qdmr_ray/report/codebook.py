"""The codebook on the page: which codes source and target choose, as a chart and as an atlas."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from html import escape

import numpy as np

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.compute import (
    ATLAS_FILE,
    USAGE_FILE,
    Progress,
    codebook_view,
    read_usage,
    trained_weights,
    write_view,
)
from qdmr_ray.evaluate.codebook.usage import (
    DEAD,
    GROUP_LABELS,
    GROUPS,
    SHARED,
    SOURCE,
    SOURCE_OWN,
    TARGET,
    CodebookUsage,
)
from qdmr_ray.photographs.decode import decode_image
from qdmr_ray.report.axes import tick_text
from qdmr_ray.report.charts import DOMAINS, Chart, Series
from qdmr_ray.report.pictures import embedded_picture
from qdmr_ray.report.run_folder import RunData

# What stands below the chart before anything is pointed at.
REST = "point at a bar to read it"
# All lengths in the SVG's own units.
WIDTH, HEIGHT = 560, 344
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 8, 46
MIDDLE = TOP + (HEIGHT - TOP - BOTTOM) / 2
HALF = (HEIGHT - TOP - BOTTOM) / 2
STRIP_TOP, STRIP_HEIGHT = HEIGHT - BOTTOM + 8, 5
# Closer ticks would not be told apart; a narrower group has no room for its name.
TICK_DISTANCE = 22
LABEL_WIDTH = 92
# Wider bars have a gap between them.
GAP_FROM = 4.0


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group of codes: how many, and which share of each domain's choices falls on them."""

    label: str
    codes: int
    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class CodebookSection:
    """What the page shows of the codebook; the atlas is a data URI with its size in pixels."""

    usage: CodebookUsage
    sentence: str
    own_share: str
    groups: list[GroupRow]
    chart: Chart
    atlas: tuple[str, int, int] | None


def codebook_section(run: RunData, progress: Progress | None = None) -> CodebookSection | None:
    """The section from the run's ``codebook.json``; made now where there is none yet.

    ``None`` where it can't be made: no trained VQGAN, or its dataset is out of reach.
    """
    found = _find(run, progress)
    if found is None:
        return None
    usage, atlas = found
    return CodebookSection(
        usage=usage,
        sentence=_sentence(usage),
        own_share=_percent(usage.own_share),
        groups=_group_rows(usage),
        chart=draw_usage(usage),
        atlas=None if atlas is None else embedded_picture(atlas),
    )


def draw_usage(usage: CodebookUsage) -> Chart:
    """Bars of source above and of target below the axis, over the codes sorted by target share."""
    groups = usage.groups()
    codes = [code for code in usage.order() if groups[code] != DEAD]
    largest = max(usage.source.frequencies.max(), usage.target.frequencies.max(), 1e-12)
    series, paths, points = [], [], []
    for name, sign in ((SOURCE, -1), (TARGET, 1)):
        frequencies = (usage.source if name == SOURCE else usage.target).frequencies[codes]
        tips = MIDDLE + sign * HALF * np.sqrt(frequencies / largest)
        colour = DOMAINS.index(name)
        series.append(Series(label=name, colour=colour, raw=[], smooth=[], missing=0))
        paths.append(f'<path class="bar s{colour}" d="{_bars(tips)}"/>')
        places = [round(_x(index + 0.5, len(codes)), 1) for index in range(len(codes))]
        points.append(
            [
                [code, float(f"{100 * frequency:.4g}"), x, round(tip, 1)]
                for code, frequency, x, tip in zip(codes, frequencies, places, tips, strict=True)
            ]
        )
    cursor = (
        f'<g class="cursor" visibility="hidden"><line y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        + "".join(f'<circle r="3.5" class="s{line.colour}"/>' for line in series)
        + "</g>"
    )
    summary = f"Use of {len(codes)} codes by source (up) and target (down). {_sentence(usage)}"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{_grid(largest)}{''.join(paths)}"
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{MIDDLE}" y2="{MIDDLE}"/>'
        f"{_strip([str(groups[code]) for code in codes])}{cursor}</svg>"
    )
    return Chart(
        title="How often each code is chosen",
        svg=svg,
        series=series,
        logarithmic=False,
        remark="share of the choices, square-root scale",
        data={
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "width": WIDTH,
            "along": "code",
            "rest": REST,
            "unit": " %",
            "series": [
                {"label": line.label, "points": known}
                for line, known in zip(series, points, strict=True)
            ],
        },
    )


def _find(
    run: RunData, progress: Progress | None
) -> tuple[CodebookUsage, np.ndarray | None] | None:
    stored, weights = None, None
    try:
        stored = read_usage(run.place)
    except QdmrError as error:
        run.problems.append(str(error))
    # What is wrong with the network or the dataset is no business of the report.
    with contextlib.suppress(QdmrError):
        weights = trained_weights(run.place)
    if stored is not None and weights in (None, stored.weights_sha256):
        return stored, _stored_atlas(run)
    if weights is not None:
        try:
            view = codebook_view(run.place, progress=progress)
        except (QdmrError, RuntimeError):
            view = None
        if view is not None:
            with contextlib.suppress(QdmrError):
                write_view(view, run.place)
            return view.usage, view.atlas
    if stored is not None:
        run.problems.append(
            f"{USAGE_FILE} is of another network than vqgan/final, and its dataset is out of "
            "reach: not shown; run qdmr codebook where the dataset is"
        )
    return None


def _stored_atlas(run: RunData) -> np.ndarray | None:
    file = run.place.join(ATLAS_FILE)
    try:
        return decode_image(file.read_bytes(), file.uri)
    except QdmrError as error:
        run.problems.append(str(error))
        return None


def _sentence(usage: CodebookUsage) -> str:
    own = usage.group_sizes()["target_own"]
    return (
        f"{_percent(usage.target_on_source_codes)} of what target photographs choose falls on "
        f"codes that source photographs choose too. The two uses differ by {usage.divergence:.2f} "
        "bits, where 0 is the same use and 1 nothing in common. "
        f"{own:,} of {usage.codes:,} codes {'is' if own == 1 else 'are'} the target's own: it "
        f"makes at least {_percent(usage.own_share)} of their use."
    )


def _group_rows(usage: CodebookUsage) -> list[GroupRow]:
    groups = usage.groups()
    rows = []
    for name in GROUPS:
        chosen = groups == name
        shares = [float(used.frequencies[chosen].sum()) for used in (usage.source, usage.target)]
        source, target = ("–", "–") if name == DEAD else map(_percent, shares)
        text = GROUP_LABELS[name]
        rows.append(
            GroupRow(
                label=text[0].upper() + text[1:],
                codes=int(chosen.sum()),
                source=source,
                target=target,
            )
        )
    return rows


def _percent(share: float) -> str:
    """Rounded, but neither to 0 nor to 100 % where it is not."""
    share = round(share, 12)
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 < share < 1:
        return "> 99.9 %"
    digits = 0 if share in (0.0, 1.0) or 0.01 <= share <= 0.99 else 1
    return f"{100 * share:.{digits}f} %"


def _x(index: float, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, count)


def _bars(tips: np.ndarray) -> str:
    count = len(tips)
    wide = _x(1, count) - _x(0, count) >= GAP_FROM
    parts = []
    for index, tip in enumerate(tips):
        if tip != MIDDLE:
            left, right = _x(index, count), _x(index + 1, count) - (1.0 if wide else 0.0)
            parts.append(f"M{left:.1f} {MIDDLE}V{tip:.1f}H{right:.1f}V{MIDDLE}z")
    return "".join(parts)


def _grid(largest: float) -> str:
    """Lines at round shares from the largest down, as far apart as can be read, on both sides."""
    power = math.floor(math.log10(largest))
    steps = [f * 10.0**e for e in (power, power - 1, power - 2) for f in (5.0, 2.0, 1.0)]
    parts, last = [], HALF + TICK_DISTANCE
    for share in steps:
        distance = HALF * math.sqrt(share / largest)
        if distance > HALF or min(last - distance, distance) < TICK_DISTANCE:
            continue
        last = distance
        for y in (MIDDLE - distance, MIDDLE + distance):
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}"')
            parts.append(f' y2="{y:.1f}"/><text class="y" x="{LEFT - 6}" y="{y + 3.5:.1f}">')
            parts.append(f"{tick_text(100 * share)} %</text>")
    return "".join(parts)


def _strip(groups: list[str]) -> str:
    """Under the bars: where the source's own codes end and where the target's own begin."""
    parts, start = [], 0
    for name in GROUPS[:-1]:
        end = start + groups.count(name)
        if end > start:
            left, right = _x(start, len(groups)), _x(end, len(groups))
            colour = {SHARED: "s5", SOURCE_OWN: f"s{DOMAINS.index(SOURCE)}"}.get(
                name, f"s{DOMAINS.index(TARGET)}"
            )
            parts.append(
                f'<rect class="group {colour}" x="{left:.1f}" y="{STRIP_TOP}" '
                f'width="{max(1.0, right - left - 1):.1f}" height="{STRIP_HEIGHT}"/>'
            )
            if right - left >= LABEL_WIDTH:
                parts.append(
                    f'<text class="x" x="{(left + right) / 2:.1f}" y="{STRIP_TOP + 20}">'
                    f"{escape(GROUP_LABELS[name])}</text>"
                )
        start = end
    return "".join(parts)
