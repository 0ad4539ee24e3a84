"""The metrics of an evaluation as the report shows them: headline, tiles and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info
from qdmr_ray.evaluate.names import INPUT, label
from qdmr_ray.evaluate.results import Evaluation
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """A stage's or a photograph's values, in the order of the table's columns."""

    name: str
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class ColumnGroup:
    """The columns of one metric."""

    style: MetricInfo
    columns: list[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Values by stage or by photograph; each metric is a group of columns."""

    groups: list[ColumnGroup]
    rows: list[Row]


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
    gain = None if metric is None else mean_gain(evaluation, stage, metric)
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


def mean_gain(evaluation: Evaluation, stage: str, metric: str) -> float | None:
    """Returns a mean's change from the input to ``stage``, ``None`` where either is missing."""
    before = evaluation.means.get(INPUT, {}).get(metric)
    return change(before, evaluation.means[stage].get(metric))


def change(before: float | None, after: float | None) -> float | None:
    """Returns ``after - before``, ``None`` where that is no finite number."""
    if before is None or after is None or not math.isfinite(after - before):
        return None
    return after - before


def tiles(evaluation: Evaluation | None) -> list[tuple[str, MetricInfo, Cell]]:
    """Returns the main metric of the input and each stage: label, style and value."""
    metric = primary_metric(evaluation) if evaluation else None
    if evaluation is None or metric is None:
        return []
    style = metric_info(metric)
    return [
        (label(stage), style, _stage_cell(evaluation, stage, metric, style))
        for stage in evaluation.means
    ]


def stage_table(evaluation: Evaluation | None) -> Table | None:
    """Returns the table with a row for the input and for each stage."""
    if evaluation is None:
        return None
    styles = [(name, metric_info(name)) for name in metrics_of(evaluation)]
    rows = [
        Row(
            name=label(stage),
            cells=[_stage_cell(evaluation, stage, name, style) for name, style in styles],
        )
        for stage in evaluation.means
    ]
    groups = [ColumnGroup(style=style, columns=[style.label]) for _, style in styles]
    return Table(groups=groups, rows=rows)


def photograph_table(evaluation: Evaluation | None) -> Table | None:
    """Returns a row per photograph; per metric the input, every stage, and the gain of the last."""
    metrics = _photograph_metrics(evaluation) if evaluation else []
    if evaluation is None or not evaluation.per_image or not metrics:
        return None
    last = last_stage(evaluation)
    columns = [label(stage) for stage in evaluation.means]
    if last:
        columns.append(f"{label(last)} gain")
    groups = [ColumnGroup(style=metric_info(name), columns=columns) for name in metrics]
    rows = []
    for image in evaluation.per_image:
        cells = []
        for name in metrics:
            style = metric_info(name)
            values = [image.values.get(stage, {}).get(name) for stage in evaluation.means]
            cells += [Cell(text=style.text(value), value=sortable(value)) for value in values]
            if last:
                gain = change(values[0], values[-1])
                text = style.text(gain, signed=True)
                cells.append(Cell(text=text, value=sortable(gain), verdict=verdict(style, gain)))
        rows.append(Row(name=image.name, cells=cells))
    return Table(groups=groups, rows=rows)


def _photograph_metrics(evaluation: Evaluation) -> list[str]:
    """Returns the metrics with a mean, then those that only single photographs have."""
    rows = [row for image in evaluation.per_image for row in image.values.values()]
    return list(dict.fromkeys([*metrics_of(evaluation), *(name for row in rows for name in row)]))


def _stage_cell(evaluation: Evaluation, stage: str, metric: str, style: MetricInfo) -> Cell:
    gain = None if stage == INPUT else mean_gain(evaluation, stage, metric)
    return Cell(
        text=style.text(evaluation.means[stage].get(metric)),
        gain=None if gain is None else style.text(gain, signed=True),
        verdict=verdict(style, gain),
        best=stage in _best(evaluation, metric, style),
        spread=_spread(evaluation, stage, metric, style),
    )


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


def verdict(style: MetricInfo, gain: float | None) -> str:
    """Returns ``better`` or ``worse``, or an empty text where the change is too small to see."""
    if gain is None or not style.better or round(gain, style.digits) == 0:
        return ""
    return "better" if gain * style.better > 0 else "worse"


def _best(evaluation: Evaluation, metric: str, style: MetricInfo) -> set[str]:
    """Returns the stages (input included) with the best value, if any is better than another."""
    known = {
        stage: value * style.better
        for stage, figures in evaluation.means.items()
        if (value := figures.get(metric)) is not None
    }
    if not style.better or len(set(known.values())) < 2:
        return set()
    return {stage for stage, value in known.items() if value == max(known.values())}


def sortable(value: float | None) -> str:
    """Returns the sorting key for the page's script; empty without a value."""
    return "" if value is None else repr(value)
