"""Reads a sweep's folder for its report; ``sweep.json`` has to be there."""

from collections import Counter
from dataclasses import replace

from qdmr_ray.errors import QdmrError, without_passwords
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info
from qdmr_ray.evaluate.sweep_file import BEST_FILE, MIN, SWEEP_FILE, SweepFile, Values, finite
from qdmr_ray.report.run_folder import noted
from qdmr_ray.report.sweep.data import PlainMetric, Sweep, Trial
from qdmr_ray.storage import Location


def is_sweep(place: Location) -> bool:
    """Returns whether the folder is a sweep's."""
    return place.join(SWEEP_FILE).size() is not None


def read_sweep(place: Location) -> Sweep:
    """Reads the sweep in the folder ``place``; raises QdmrError if ``sweep.json`` is missing or
    broken, or it names no metric."""
    file, best, problems = place.join(SWEEP_FILE), place.join(BEST_FILE), list[str]()
    content = SweepFile.read(file)
    objectives = _objectives(content)
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
    repeats = []
    for known in content.repeats:
        padded = {name: _values(getattr(known, name), count) for name in ("mean", "std")}
        values = [_values(row, count) for row in known.values]
        repeats.append(known.model_copy(update={**padded, "values": values}))
    best_text = ""
    with noted(problems):
        if best.size() is not None:
            best_text = without_passwords(best.read_bytes().decode(errors="replace"))
    by_id = {trial.id: trial for trial in trials}
    return Sweep(
        place=place,
        content=content,
        name=content.name or place.name,
        space=content.space,
        importances=content.importances,
        objectives=objectives,
        trials=trials,
        best=by_id.get(content.best or ""),
        front=[by_id[key] for key in content.front if key in by_id],
        baseline=by_id.get(content.baseline or ""),
        repeats=repeats,
        best_text=best_text,
        problems=problems,
    )


def _objectives(content: SweepFile) -> list[MetricInfo]:
    """Returns the metric of ``uda/validation/psnr`` by its last part, else a plain one; both have
    the full name, which is also the label of metrics that would have the same."""
    metrics: list[MetricInfo] = []
    for one in content.metrics:
        last, better = one.name.rsplit("/", 1)[-1], -1 if one.mode == MIN else 1
        if last.partition("_")[0] in METRICS:
            metrics.append(replace(metric_info(last), name=one.name, better=better))
        else:
            metrics.append(PlainMetric(name=one.name, label=one.name, better=better))
    labels = Counter(metric.label for metric in metrics)
    return [m if labels[m.label] == 1 else replace(m, label=m.name) for m in metrics]


def _values(row: Values | None, count: int) -> Values:
    """Returns ``count`` values, ``None`` where one is missing or not finite."""
    known = [finite(value) for value in (row or [])[:count]]
    return known + [None] * (count - len(known))
