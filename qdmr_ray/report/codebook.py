"""The codebook on the page: which codes source and target choose, as a chart and as an atlas.
``qdmr evaluate``, ``qdmr demo`` or ``qdmr codebook`` computed both; a page only reads
``codebook.json`` and ``codebook.png``."""

import contextlib
import math
from typing import Any

import plotly.graph_objects as go

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.compute import ATLAS_FILE, USAGE_FILE, read_usage, trained_weights
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
from qdmr_ray.report.charts import DOMAINS, PLAIN_COLOUR, Chart, colour
from qdmr_ray.report.pictures import embedded_picture
from qdmr_ray.report.run_folder import RunData, noted

HEIGHT = 380
# The distance of ticks, as a share of the larger bar's height: closer ones could not be told apart.
TICK_DISTANCE = 0.14
# A group of a smaller share of the codes has no room for its name.
LABEL_SHARE = 0.2


def codebook_section(run: RunData) -> dict[str, Any] | str | None:
    """Returns the variables of ``codebook.html.j2`` from the run's ``codebook.json``, ``None``
    without a trained VQGAN. If the file is missing or of another network, returns a line that says
    how to make or renew it. The atlas is a data URI with its size in pixels, if there is one."""
    usage, weights = None, None
    with noted(run.problems):
        usage = read_usage(run.place)
    # Errors of the network are no concern of the report.
    with contextlib.suppress(QdmrError):
        weights = trained_weights(run.place)
    if usage is None:
        return None if weights is None else f"There is no {USAGE_FILE} yet."
    if weights not in (None, usage.weights_sha256):
        return f"{USAGE_FILE} is of another network than vqgan/final."
    return {
        "usage": usage,
        "sentence": _sentence(usage),
        "own_share": _percent(usage.own_share),
        "groups": _group_rows(usage),
        "chart": draw_usage(usage),
        "atlas": embedded_picture(run.place.join(ATLAS_FILE), run.problems),
    }


def draw_usage(usage: CodebookUsage) -> Chart:
    """Draws bars of source above and of target below the axis, over the codes sorted by target
    share. Heights go with the square root of the share: the rare codes are the ones to look at."""
    groups = usage.groups()
    codes = [int(code) for code in usage.order() if groups[code] != DEAD]
    up, down = (used.frequencies[codes].tolist() for used in (usage.source, usage.target))
    largest = max(*up, *down, 1e-12) if codes else 1.0
    traces = [
        go.Bar(
            x=list(range(len(codes))),
            y=[round(sign * math.sqrt(share), 5) for share in shares],
            name=name,
            marker={"color": colour(DOMAINS.index(name)), "line": {"width": 0}},
            hovertext=[
                f"code {code}: {name} {_percent(share)}"
                for code, share in zip(codes, shares, strict=True)
            ],
            hoverinfo="text",
        )
        for name, sign, shares in ((SOURCE, 1, up), (TARGET, -1, down))
    ]
    strips, centres, names = _strips([str(groups[code]) for code in codes])
    ticks = _ticks(largest)
    heights = [math.sqrt(share) for share in (0.0, *ticks)]
    edge = 1.06 * math.sqrt(largest)
    layout = {
        "barmode": "overlay",
        "bargap": 0.12,
        "hovermode": "x",
        "shapes": strips,
        "xaxis": {
            "tickvals": centres,
            "ticktext": names,
            "ticks": "",
            "ticklabelstandoff": 12,
            "showline": False,
        },
        "yaxis": {
            "tickvals": heights + [-height for height in heights],
            "ticktext": ["0", *(f"{100 * share:g} %" for share in ticks)] * 2,
            "range": [-edge, edge],
            "zeroline": True,
            "zerolinecolor": "var(--muted)",
            "zerolinewidth": 1,
        },
    }
    return Chart.of(
        traces,
        layout,
        title="How often each code is chosen",
        summary=f"Use of {len(codes)} codes by source (up) and target (down). {_sentence(usage)}",
        height=HEIGHT,
        remark="share of the choices, square-root scale",
        table={
            "head": ["Code", "Group", "Source %", "Target %"],
            "rows": [
                [str(code), GROUP_LABELS[str(groups[code])], *map(_rounded, shares)]
                for code, *shares in zip(codes, up, down, strict=True)
            ],
        },
    )


def _sentence(usage: CodebookUsage) -> str:
    own = usage.group_sizes()["target_own"]
    return (
        f"{_percent(usage.target_on_source_codes)} of what target photographs choose falls on "
        f"codes that source photographs choose too. The two uses differ by {usage.divergence:.2f} "
        "bits, where 0 is the same use and 1 nothing in common. "
        f"{own:,} of {usage.codes:,} codes {'is' if own == 1 else 'are'} the target's own: it "
        f"makes at least {_percent(usage.own_share)} of their use."
    )


def _group_rows(usage: CodebookUsage) -> list[dict[str, Any]]:
    """Returns each group's size, and the shares of the domains' choices that fall on it."""
    groups = usage.groups()
    rows = []
    for name in GROUPS:
        chosen = groups == name
        shares = [float(used.frequencies[chosen].sum()) for used in (usage.source, usage.target)]
        source, target = ("–", "–") if name == DEAD else map(_percent, shares)
        text = GROUP_LABELS[name][:1].upper() + GROUP_LABELS[name][1:]
        rows.append({"label": text, "codes": int(chosen.sum()), "source": source, "target": target})
    return rows


def _percent(share: float) -> str:
    """Rounds a share, but neither to 0 nor to 100 % where it is not exactly that."""
    share = round(share, 12)
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 < share < 1:
        return "> 99.9 %"
    digits = 0 if share in (0.0, 1.0) or 0.01 <= share <= 0.99 else 1
    return f"{100 * share:.{digits}f} %"


def _rounded(share: float) -> float:
    return float(f"{100 * share:.4g}")


def _ticks(largest: float) -> list[float]:
    """Returns round shares from the largest down, as far apart as can be read."""
    power = math.floor(math.log10(largest))
    ticks, last = [], 1.0 + TICK_DISTANCE
    for share in (f * 10.0**e for e in (power, power - 1, power - 2) for f in (5.0, 2.0, 1.0)):
        height = math.sqrt(share / largest)
        if height <= 1.0 and min(last - height, height) >= TICK_DISTANCE:
            ticks.append(share)
            last = height
    return ticks


def _strips(groups: list[str]) -> tuple[list[dict[str, Any]], list[float], list[str]]:
    """Returns the strips under the bars, which show where the source's own codes end and the
    target's own begin: a shape per group, and centres and names of the groups with room for a
    name."""
    tones = {SHARED: PLAIN_COLOUR, SOURCE_OWN: DOMAINS.index(SOURCE)}
    flat = {"type": "rect", "yref": "paper", "y0": -0.03, "y1": -0.012, "line": {"width": 0}}
    shapes: list[dict[str, Any]] = []
    centres, names, start = [], [], 0
    for name in GROUPS[:-1]:
        end = start + groups.count(name)
        if end > start:
            tone = colour(tones.get(name, DOMAINS.index(TARGET)))
            shapes.append({**flat, "x0": start - 0.45, "x1": end - 0.55, "fillcolor": tone})
            if end - start >= LABEL_SHARE * len(groups):
                centres.append((start + end - 1) / 2)
                names.append(GROUP_LABELS[name].replace("'s ", "'s<br>"))
        start = end
    return shapes, centres, names
