"""The gap between the lenses on the page: where it is large, and what comes near to the target.
``qdmr evaluate`` computed it with ``evaluation.source_lens``; a page only reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go

from qdmr_ray.evaluate.codebook.usage import SOURCE, TARGET
from qdmr_ray.evaluate.gap.pairs import VQGAN
from qdmr_ray.evaluate.gap.sentences import gap_sentences
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info
from qdmr_ray.evaluate.names import INPUT, S2T, label
from qdmr_ray.evaluate.results import Evaluation, Gap, Statistics, StatisticsTable, StyleGap
from qdmr_ray.evaluate.spectrum import SPECTRUM
from qdmr_ray.evaluate.sweep_file import finite
from qdmr_ray.evaluate.zones import ZONES
from qdmr_ray.report.charts import (
    BELOW_ROWS,
    DOMAINS,
    ROW,
    VALUE_AXIS,
    Chart,
    colour,
    plain,
    row_axis,
    scatter,
)
from qdmr_ray.report.evaluation import metrics_of
from qdmr_ray.report.summary import Cell, Table, change, table_of

# The domains whose choice of codes is shown.
CHOOSING = (SOURCE, S2T, TARGET)
# The space of a legend above a chart's rows.
LEGEND = 26
STYLE_LABELS = {
    SOURCE: "Source lens's picture",
    S2T: "s2t image of it",
    TARGET: "Target lens's picture through the VQGAN",
}
_ZERO = {"type": "line", "line": {"color": "var(--muted)", "dash": "dot", "width": 1.5}}


def gap_section(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Returns the variables of ``gap.html.j2``, None where the evaluation knows one lens alone."""
    if evaluation is None or evaluation.gap is None:
        return None
    gap = evaluation.gap
    return {
        "sentences": gap_sentences(evaluation, codes=False),
        "lenses": _lens_table(evaluation, gap),
        "lens_chart": draw_lenses(evaluation, gap),
        "style": _style_table(gap.style) if gap.style else None,
        "spectrum_chart": draw_spectra(gap.style) if gap.style else None,
        "codes": _code_rows(gap),
        "zones": _zone_table(gap),
        "zone_chart": draw_zones(evaluation, gap),
        "baseline": label(gap.zones.baseline) if gap.zones.baseline else None,
    }


def draw_lenses(evaluation: Evaluation, gap: Gap) -> Chart | None:
    """Draws a row for the input and each stage, with the mean on either lens and a line between
    them, as long as the gap; None where nothing was measured on both."""
    metric = metric_info(PRIMARY)
    rows: list[tuple[str, float, float]] = []
    for name in (INPUT, *evaluation.stages):
        source = _mean(gap.source_lens, name, PRIMARY)
        target = finite(evaluation.means[name].get(PRIMARY))
        if source is not None and target is not None:
            rows.append((label(name), source, target))
    if not rows:
        return None
    line = {"color": "var(--axis)", "width": 3}
    traces = [
        scatter([(source, place), (target, place)], line=line, hoverinfo="skip", showlegend=False)
        for place, (_, source, target) in enumerate(rows)
    ]
    for domain in (SOURCE, TARGET):
        values = [source if domain == SOURCE else target for _, source, target in rows]
        texts = [
            f"{plain(name)}, {domain} lens: {metric.text(value)} {metric.unit}"
            for (name, *_), value in zip(rows, values, strict=True)
        ]
        traces.append(
            scatter(
                list(zip(values, range(len(rows)), strict=True)),
                mode="markers",
                marker={"color": colour(DOMAINS.index(domain)), "size": 13},
                name=f"{domain} lens",
                hovertext=texts,
                hoverinfo="text",
            )
        )
    words = [f"{n}: {s:.2f} on the source lens, {t:.2f} on the target lens" for n, s, t in rows]
    return Chart.of(
        traces,
        {
            "xaxis": {**VALUE_AXIS, "title": {"text": metric.full_label}},
            "yaxis": row_axis([name for name, *_ in rows]),
            "showlegend": True,
        },
        title=f"{metric.label} on both lenses",
        summary="; ".join(words),
        height=ROW * len(rows) + BELOW_ROWS + LEGEND,
        remark="the line between them is the gap",
        table={
            "head": ["Image", "Source lens", "Target lens", "Gap"],
            "rows": [[name, s, t, s - t] for name, s, t in rows],
        },
    )


def draw_spectra(style: StyleGap) -> Chart:
    """Draws by how much each image's power exceeds the target lens's, over spatial frequency."""
    traces = [
        scatter(
            list(zip(style.frequencies, ratios, strict=False)),
            mode="lines+markers",
            line={"color": colour(DOMAINS.index(kind)), "width": 2},
            marker={"size": 5},
            name=STYLE_LABELS[kind],
        )
        for kind, ratios in style.spectra_db.items()
        if kind in STYLE_LABELS and style.frequencies
    ]
    level = {**_ZERO, "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0}
    distances = [
        f"{STYLE_LABELS[kind]} {SPECTRUM.text(_mean(style.statistics, kind, SPECTRUM.name))} dB"
        for kind in style.spectra_db
        if kind in STYLE_LABELS
    ]
    return Chart.of(
        traces,
        {
            "xaxis": {"title": {"text": "spatial frequency in cycles per pixel"}},
            "yaxis": {**VALUE_AXIS, "title": {"text": "dB"}},
            "shapes": [level],
            "hovermode": "x unified",
            "showlegend": True,
        },
        title="Power against the target lens's picture",
        summary=f"Root mean square over the frequencies: {'; '.join(distances)}",
        height=320,
        remark="0 is what the target lens makes of the photograph",
    )


def draw_zones(evaluation: Evaluation, gap: Gap) -> Chart | None:
    """Draws the gain by zone of the field: a bar for each stage over the baseline, with the
    interval of its mean; over the input where the run has no baseline."""
    unit = metric_info(PRIMARY).full_label
    baseline = gap.zones.baseline
    traces, words, rows = [], [], []
    for place, stage in enumerate(evaluation.stages):
        known = [(zone, *gain) for zone in ZONES if (gain := _zone_gain(gap, stage, zone))]
        if stage == baseline or not known:
            continue
        ends = [ci95 or (mean, mean) for _, mean, ci95 in known]
        means = [mean for _, mean, _ in known]
        traces.append(
            go.Bar(
                x=[zone for zone, *_ in known],
                y=means,
                name=plain(label(stage)),
                marker={"color": colour(place)},
                hovertemplate="%{x}: %{y:+.2f} " + unit,
                error_y={
                    "type": "data",
                    # Plotly draws a bar of no length, too.
                    "visible": any(ci95 for *_, ci95 in known),
                    "symmetric": False,
                    "array": [high - mean for (_, high), mean in zip(ends, means, strict=True)],
                    "arrayminus": [mean - low for (low, _), mean in zip(ends, means, strict=True)],
                    "color": "var(--muted)",
                    "thickness": 1.5,
                },
            )
        )
        figures = ", ".join(f"{zone} {mean:+.2f}" for zone, mean, _ in known)
        words.append(f"{label(stage)} {figures}")
        rows += [[label(stage), zone, mean, *(ci95 or ("", ""))] for zone, mean, ci95 in known]
    if not traces:
        return None
    over = label(baseline) if baseline else label(INPUT).lower()
    level = {**_ZERO, "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0}
    return Chart.of(
        traces,
        {
            "barmode": "group",
            "xaxis": {"type": "category"},
            "yaxis": {**VALUE_AXIS, "title": {"text": unit}},
            "shapes": [level],
            "showlegend": True,
        },
        title=f"Gain over {over} by place in the field",
        summary="; ".join(words),
        height=320,
        remark="with 95 % intervals" if baseline else "",
        table={"head": ["Stage", "Zone", f"Gain in {unit}", "95 % from", "to"], "rows": rows},
    )


def _zone_gain(gap: Gap, stage: str, zone: str) -> tuple[float, tuple[float, float] | None] | None:
    """Returns the mean gain over the baseline and its interval, or without a baseline that over the
    input; None where one of the two was not measured."""
    if gap.zones.baseline is not None:
        mean = _mean(gap.zones.gain, stage, zone)
        return None if mean is None else (mean, gap.zones.gain[stage][zone].ci95)
    gain = change(_mean(gap.zones.psnr, INPUT, zone), _mean(gap.zones.psnr, stage, zone))
    return None if gain is None else (gain, None)


def _mean(table: StatisticsTable, name: str, metric: str) -> float | None:
    """Returns a mean, None where there is none or it is not finite, which no chart can show."""
    known = table.get(name, {}).get(metric)
    return None if known is None else finite(known.mean)


def _lens_table(evaluation: Evaluation, gap: Gap) -> Table:
    """Returns a row for the input and each stage; per metric either lens, and the gap."""
    names = [*evaluation.means]
    styles, columns = [], []
    for metric in metrics_of(evaluation):
        info = metric_info(metric)
        # Nobody can say which direction of a gap is better: both lenses could be worse.
        lenses = [replace(info, label=f"{info.label}, {lens} lens") for lens in (SOURCE, TARGET)]
        styles += [*lenses, replace(info, label=f"{info.label}, gap", better=0)]
        columns += [
            [Cell(text=info.text(_mean(gap.source_lens, name, metric))) for name in names],
            [Cell(text=info.text(evaluation.means[name].get(metric))) for name in names],
            [_cell(info, gap.difference.get(name, {}).get(metric), signed=True) for name in names],
        ]
    return table_of(styles, list(map(label, names)), columns)


def _style_table(style: StyleGap) -> Table:
    """Returns a row for each kind of image, with its distance from the target lens's picture."""
    kinds = [kind for kind in STYLE_LABELS if kind in style.statistics]
    metrics = dict.fromkeys(metric for kind in kinds for metric in style.statistics[kind])
    styles = [_info(metric) for metric in metrics]
    columns = []
    for info in styles:
        known = [style.statistics[kind].get(info.name) for kind in kinds]
        cells = [_cell(info, found) for found in known]
        change = style.change.get(info.name)
        if S2T in kinds and change is not None and change.mean is not None:
            place = kinds.index(S2T)
            text = f"{info.text(change.mean, signed=True)} against the plain picture"
            cells[place] = replace(
                cells[place], spread=(text, *_interval(info, change, signed=True))
            )
        columns.append(cells)
    return table_of(styles, [STYLE_LABELS[kind] for kind in kinds], columns)


def _zone_table(gap: Gap) -> Table:
    """Returns PSNR by zone for the input and each stage, and below it the gain over the
    baseline."""
    primary = metric_info(PRIMARY)
    styles = [replace(primary, name=zone, label=f"{zone.capitalize()}") for zone in ZONES]
    columns = []
    for info in styles:
        cells = []
        for name, by_zone in gap.zones.psnr.items():
            cell = _cell(info, by_zone.get(info.name))
            gain = gap.zones.gain.get(name, {}).get(info.name)
            if gain is not None and gain.mean is not None:
                text = f"gain {info.text(gain.mean, signed=True)}"
                cell = replace(cell, spread=(text, *_interval(info, gain, signed=True)))
            cells.append(cell)
        columns.append(cells)
    return table_of(styles, list(map(label, gap.zones.psnr)), columns)


def _info(metric: str) -> MetricInfo:
    return SPECTRUM if metric == SPECTRUM.name else metric_info(metric)


def _cell(info: MetricInfo, found: Statistics | None, *, signed: bool = False) -> Cell:
    if found is None:
        return Cell(text=info.text(None))
    text = info.text(found.mean, signed=signed)
    return Cell(text=text, spread=_interval(info, found, signed=signed))


def _interval(info: MetricInfo, found: Statistics, *, signed: bool = False) -> tuple[str, ...]:
    if found.ci95 is None:
        return ()
    low, high = (info.text(end, signed=signed) for end in found.ci95)
    return (f"95 %: {low} … {high}",)


def _code_rows(gap: Gap) -> list[dict[str, Any]]:
    """Returns a row for each network with a codebook; a text is empty where it has no value."""

    def texts(values: Mapping[str, Any], form: str, domains: Sequence[str] = CHOOSING) -> list[str]:
        return [form.format(values[domain]) if domain in values else "" for domain in domains]

    return [
        {
            "label": "VQGAN" if name == VQGAN else label(name),
            "codes": choices.codes,
            "used": texts(choices.used, "{:,}"),
            "perplexity": texts(choices.perplexity, "{:,.1f}"),
            "divergence": texts(choices.divergence_bits, "{:.3f}", (SOURCE, S2T)),
        }
        for name, choices in gap.codes.items()
    ]
