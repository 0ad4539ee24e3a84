"""Reads a sweep's folder for its report; ``sweep.json`` has to be there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate import sweep_file
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info
from qdmr_ray.evaluate.sweep_file import BEST_FILE, SWEEP_FILE, SweepFile, Values, finite
from qdmr_ray.report.sweep.data import Objective, PlainMetric, Repeats, Sweep, Trial
from qdmr_ray.storage import Location


def is_sweep(place: Location) -> bool:
    """Returns whether the folder is a sweep's."""
    return place.join(SWEEP_FILE).size() is not None


def read_sweep(place: Location) -> Sweep:
    """Reads the sweep in the folder ``place``; raises QdmrError if ``sweep.json`` is missing or
    broken, or it names no metric."""
    file = place.join(SWEEP_FILE)
    content = SweepFile.read(file)
    objectives = _objectives(content.metrics)
    if not objectives:
        raise QdmrError(f"{file.uri} names no metric under 'metrics': mend it")
    count = len(objectives)
    trials = [
        Trial.model_construct(**{**dict(record), "values": _values(record.values, count)})
        for record in content.trials
    ]
    for trial in trials:
        for line in trial.history:
            line.values.extend([None] * (count - len(line.values)))
    by_id = {trial.id: trial for trial in trials}
    problems: list[str] = []
    return Sweep(
        place=place,
        content=content,
        objectives=objectives,
        trials=trials,
        best=by_id.get(content.best or ""),
        front=[by_id[key] for key in content.front if key in by_id],
        baseline=by_id.get(content.baseline or ""),
        repeats=[
            Repeats(
                of=known.of,
                seeds=list(map(str, known.seeds)),
                values=[_values(row, count) for row in known.values],
                mean=_values(known.mean, count),
                std=_values(known.std, count),
            )
            for known in content.repeats
        ],
        best_text=_best_text(place, problems),
        problems=problems,
    )


def _objectives(named: list[sweep_file.Objective]) -> list[Objective]:
    styles = [_style(one.name, -1 if one.mode == sweep_file.MIN else 1) for one in named]
    labels = Counter(style.label for style in styles)
    return [
        Objective(
            name=one.name,
            style=style if labels[style.label] == 1 else replace(style, label=one.name),
        )
        for one, style in zip(named, styles, strict=True)
    ]


def _style(name: str, better: int) -> MetricInfo:
    """Returns the style of ``uda/validation/psnr`` by its last part, else one with the full
    name."""
    last = name.rsplit("/", 1)[-1]
    if last.partition("_")[0] in METRICS:
        return replace(metric_info(last), better=better)
    return PlainMetric(name=name, label=name, better=better)


def _best_text(place: Location, problems: list[str]) -> str:
    file = place.join(BEST_FILE)
    try:
        return "" if file.size() is None else file.read_bytes().decode("utf-8", errors="replace")
    except QdmrError as error:
        problems.append(str(error))
        return ""


def _values(row: Values | None, count: int) -> Values:
    """Returns ``count`` values, ``None`` where one is missing or not finite."""
    known = [finite(value) for value in (row or [])[:count]]
    return known + [None] * (count - len(known))
