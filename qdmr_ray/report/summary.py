"""The metrics of an evaluation as the report shows them: headline, tiles and tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info
from qdmr_ray.evaluate.names import INPUT, label
from qdmr_ray.evaluate.results import Evaluation, PhotographResult
from qdmr_ray.report.evaluation import last_stage, metrics_of


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value in a table. ``gain`` is its change from the input as text, ``verdict`` ``better``,
    ``worse`` or empty, ``value`` the sorting key (empty without a value), ``spread`` the median and
    the mean's interval as lines of text."""

    text: str
    value: str = ""
    gain: str | None = None
    verdict: str = ""
    best: bool = False
    spread: tuple[str, ...] = ()


class Table(NamedTuple):
    """Values by stage or by photograph: each metric with the names of its columns, and each row's
    name with its cells."""

    groups: list[tuple[MetricInfo, list[str]]]
    rows: list[tuple[str, list[Cell]]]


def primary_metric(evaluation: Evaluation) -> str | None:
    """Returns the registry's primary metric where a stage has it, else the first of any stage."""
    metrics = [
        name
        for name in metrics_of(evaluation)
        if any(name in evaluation.means[stage] for stage in evaluation.stages)
    ]
    return PRIMARY if PRIMARY in metrics else next(iter(metrics), None)


def headline(evaluation: Evaluation | None) -> str:
    """Returns the run in one sentence: its last stage's gain over the input, good or bad."""
    if evaluation is None:
        return "This run has not been evaluated yet."
    count = photographs(evaluation.images)
    stage, metric = last_stage(evaluation), primary_metric(evaluation)
    if stage is None:
        return f"The aberrated input was measured on {count}; no stage has been evaluated yet."
    gain = change(evaluation.input.get(metric or ""), evaluation.stages[stage].get(metric or ""))
    if metric is None or gain is None:
        return f"{label(stage)} was evaluated on {count}."
    style = metric_info(metric)
    figure = " ".join(filter(None, [style.text(gain, signed=True), style.unit, style.label]))
    relation = "over" if style.better > 0 and gain >= 0 else "against"
    remark = " (lower is better)" if style.better < 0 else ""
    return f"{label(stage)}: {figure}{remark} {relation} the aberrated input on {count}."


def photographs(count: int) -> str:
    """Returns ``1 held-out photograph`` or ``8 held-out photographs``."""
    return f"{count} held-out photograph{'s' * (count != 1)}"


def change(before: float | None, after: float | None) -> float | None:
    """Returns ``after - before``, ``None`` where that is no finite number."""
    if before is None or after is None or not math.isfinite(after - before):
        return None
    return after - before


def photograph_gain(image: PhotographResult, stage: str, metric: str) -> float | None:
    """Returns a photograph's change from the input to ``stage``, ``None`` where it has none."""
    return change(image.values.get(INPUT, {}).get(metric), image.values.get(stage, {}).get(metric))


def tiles(evaluation: Evaluation | None) -> list[tuple[str, MetricInfo, Cell]]:
    """Returns the main metric of the input and each stage: label, style and value."""
    metric = primary_metric(evaluation) if evaluation else None
    if evaluation is None or metric is None:
        return []
    cells = zip(evaluation.means, _stage_cells(evaluation, metric), strict=True)
    return [(label(stage), metric_info(metric), cell) for stage, cell in cells]


def stage_table(evaluation: Evaluation | None) -> Table | None:
    """Returns the table with a row for the input and for each stage."""
    if evaluation is None:
        return None
    columns = {name: _stage_cells(evaluation, name) for name in metrics_of(evaluation)}
    styles = [metric_info(name) for name in columns]
    return table_of(styles, list(map(label, evaluation.means)), list(columns.values()))


def table_of(
    styles: Sequence[MetricInfo], names: Sequence[str], columns: Sequence[Sequence[Cell]]
) -> Table:
    """Returns a table with these rows' ``names`` and a column for each style."""
    rows = [(name, [column[row] for column in columns]) for row, name in enumerate(names)]
    return Table([(style, [style.label]) for style in styles], rows)


def column_of(
    style: MetricInfo,
    values: Sequence[float | None],
    *,
    texts: Sequence[str],
    spreads: Sequence[tuple[str, ...]],
    own: int | None,
) -> list[Cell]:
    """Returns a cell per row, with its change from row ``own`` and with the best marked, if any is
    better than another."""
    known = [value * style.better for value in values if value is not None]
    differ = bool(style.better) and len(set(known)) > 1
    cells = []
    for row, (value, text, spread) in enumerate(zip(values, texts, spreads, strict=True)):
        gain = None if own in (None, row) else change(values[own], value)
        best = differ and value is not None and value * style.better == max(known)
        cells.append(Cell(text=text, best=best, spread=spread, **gain_texts(style, gain)))
    return cells


def gain_texts(style: MetricInfo, gain: float | None) -> dict[str, Any]:
    """Returns ``gain`` as text, and its ``verdict``: ``better`` or ``worse``, or empty where the
    change is too small to see."""
    if gain is None:
        return {"gain": None, "verdict": ""}
    seen = style.better and round(gain, style.digits) != 0
    verdict = ("better" if gain * style.better > 0 else "worse") if seen else ""
    return {"gain": style.text(gain, signed=True), "verdict": verdict}


def photograph_table(evaluation: Evaluation | None) -> Table | None:
    """Returns a row per photograph; per metric the input, every stage, and the gain of the last."""
    metrics = _photograph_metrics(evaluation) if evaluation else []
    if evaluation is None or not evaluation.per_image or not metrics:
        return None
    last = last_stage(evaluation)
    columns = [label(stage) for stage in evaluation.means]
    if last:
        columns.append(f"{label(last)} gain")
    groups = [(metric_info(name), columns) for name in metrics]
    rows = []
    for image in evaluation.per_image:
        cells = []
        for name in metrics:
            style = metric_info(name)
            values = [image.values.get(stage, {}).get(name) for stage in evaluation.means]
            cells += [Cell(text=style.text(value), value=sortable(value)) for value in values]
            if last:
                gain = photograph_gain(image, last, name)
                shown = gain_texts(style, gain)
                text = shown["gain"] or style.text(None)
                cells.append(Cell(text=text, value=sortable(gain), verdict=shown["verdict"]))
        rows.append((image.name, cells))
    return Table(groups, rows)


def _photograph_metrics(evaluation: Evaluation) -> list[str]:
    """Returns the metrics with a mean, then those that only single photographs have."""
    rows = [row for image in evaluation.per_image for row in image.values.values()]
    return list(dict.fromkeys([*metrics_of(evaluation), *(name for row in rows for name in row)]))


def _stage_cells(evaluation: Evaluation, metric: str) -> list[Cell]:
    style = metric_info(metric)
    values = [means.get(metric) for means in evaluation.means.values()]
    spreads = [_spread(evaluation, stage, metric, style) for stage in evaluation.means]
    return column_of(style, values, texts=list(map(style.text, values)), spreads=spreads, own=0)


def _spread(evaluation: Evaluation, stage: str, metric: str, style: MetricInfo) -> tuple[str, ...]:
    """Returns ``median 26.10`` and ``95 %: 25.30 … 27.00``, as far as the file has them."""
    known = evaluation.statistics.get(stage, {}).get(metric)
    if known is None:
        return ()
    lines = [] if known.median is None else [f"median {style.text(known.median)}"]
    if known.ci95 is not None:
        low, high = map(style.text, known.ci95)
        lines.append(f"95 %: {low} … {high}")
    if known.n != evaluation.images:
        lines.append(f"of {known.n}")
    return tuple(lines)


def with_unit(metric: MetricInfo, value: float | None, *, signed: bool = False) -> str:
    """Returns ``27.10 dB`` or ``n/a``; no line ends between a number and its unit."""
    text = metric.text(value, signed=signed)
    known = value is not None and metric.unit
    return f"{text}\N{NO-BREAK SPACE}{metric.unit}" if known else text


def sortable(value: float | None) -> str:
    """Returns the sorting key for the page's script; empty without a value."""
    return "" if value is None else repr(value)
