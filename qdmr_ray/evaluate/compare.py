"""One table over several evaluations, as a paper prints it: means, intervals and significance.

    evaluations = [read_evaluation(open_location(run)) for run in ("runs/a", "runs/b")]
    print(comparison_text(compare(named_apart(evaluations)), "latex"))

Images are paired by name, and only those count that every evaluation has.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import INPUT
from qdmr_ray.evaluate.results import Evaluation, Statistics
from qdmr_ray.evaluate.statistics import FEWEST_PAIRS, RESAMPLES, holm, paired_p, statistics_of
from qdmr_ray.models.layout import EVALUATION_FILE
from qdmr_ray.storage import Location

# Relative difference allowed between inputs of one test set, whose values are float64.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """The evaluation in the file ``source``; ``images[image][stage][metric]`` are its values,
    without those that are null."""

    name: str
    source: str
    evaluation: Evaluation
    images: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of one row; ``p`` is corrected, None in the reference's row."""

    statistics: Statistics
    p: float | None
    best: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table: ``rows[name][metric]``, and what a reader must know about it."""

    metrics: list[str]
    rows: dict[str, dict[str, Cell]]
    reference: str
    images: int
    notes: list[str]


def read_evaluation(place: Location) -> StoredEvaluation:
    """Reads the evaluation of a run folder, of a folder given as ``--out``, or in the file itself;
    raises QdmrError where there is none, or it holds no values of single images."""
    file = place if place.name.endswith(".json") else place.join(EVALUATION_FILE)
    if not file.exists():
        raise QdmrError(f"{file.uri}: there is no evaluation; run qdmr evaluate first")
    evaluation = Evaluation.read(file)
    images = {
        row.name: {
            name: {m: v for m, v in row.values.get(name, {}).items() if v is not None}
            for name in evaluation.means
        }
        for row in evaluation.per_image
    }
    if len(images) < len(evaluation.per_image):
        raise QdmrError(f"{file.uri}: two images have one name, so they can't be paired")
    folder = file.path.rsplit("/", 2)
    return StoredEvaluation(
        name=folder[-2] if len(folder) > 1 else file.uri,
        source=file.uri,
        evaluation=evaluation,
        images=images,
    )


def named_apart(evaluations: Sequence[StoredEvaluation]) -> list[StoredEvaluation]:
    """Renames evaluations whose folders have one name to their whole path; raises SettingsError
    where the same file is named twice."""
    for source, count in Counter(evaluation.source for evaluation in evaluations).items():
        if count > 1:
            raise SettingsError(f"{source} is named twice: name each evaluation once")
    names = Counter(evaluation.name for evaluation in evaluations)
    return [
        e if names[e.name] == 1 else replace(e, name=e.source.removesuffix(f"/{EVALUATION_FILE}"))
        for e in evaluations
    ]


def compare(
    evaluations: Sequence[StoredEvaluation], *, metrics: Sequence[str] = (), reference: str = INPUT
) -> Comparison:
    """Makes the table of ``evaluations``: a row for the input, then one for every stage of each.

    Without ``metrics`` it shows those that every row has. Where the evaluations know both lenses,
    ``metrics`` may also name ``psnr_source`` (on the source lens; likewise ``ssim_source``) and
    ``psnr_centre``, ``psnr_middle``, ``psnr_corner`` (by zone of the field). Significance is
    Wilcoxon's signed-rank test of each row against ``reference`` (a row's name) on the same images,
    with Holm's correction over the rows of a metric. Raises QdmrError where the test sets or
    settings differ, or no image is in all evaluations; SettingsError for an unknown metric or
    reference.
    """
    if not evaluations:
        raise SettingsError("name at least one run or evaluation")
    evaluations = [_with_both_lenses(evaluation, metrics) for evaluation in evaluations]
    records = {e.source: e.evaluation for e in evaluations}
    for what, field in (("test set", "test_set"), ("border", "border"), ("luma", "luma")):
        _check_equal(what, {file: getattr(e.provenance, field) for file, e in records.items()})
    common = set.intersection(*(set(evaluation.images) for evaluation in evaluations))
    if not common:
        raise QdmrError(
            f"{', '.join(records)}: have no image in common: these are different test sets"
        )
    names = [name for name in evaluations[0].images if name in common]
    _check_inputs(evaluations, names)
    values = _rows(evaluations)
    if reference not in values:
        raise SettingsError(f"--reference {reference}: choose from {', '.join(values)}")
    chosen = _metrics(values, names, metrics)
    for metric in chosen:
        if key := metric_info(metric).reference:
            _check_equal(key, {file: e.reference(metric) for file, e in records.items()})
    rows: dict[str, dict[str, Cell]] = {row: {} for row in values}
    kept: dict[str, int] = {}
    for metric in chosen:
        usable = [n for n in names if all(metric in row[n] for row in values.values())]
        kept[metric] = len(usable)
        columns = {row: [by_image[n][metric] for n in usable] for row, by_image in values.items()}
        for row, cell in _cells(columns, reference, metric).items():
            rows[row][metric] = cell
    return Comparison(
        metrics=chosen,
        rows=rows,
        reference=reference,
        images=len(names),
        notes=_notes(evaluations, names, kept, reference, len(values) - 1),
    )


def _with_both_lenses(evaluation: StoredEvaluation, metrics: Sequence[str]) -> StoredEvaluation:
    """Adds those of the ``metrics`` that only an evaluation of both lenses has."""
    gap = evaluation.evaluation.gap
    if gap is None:
        return evaluation
    images = {image: dict(by_name) for image, by_name in evaluation.images.items()}
    for row in gap.per_image:
        for name, values in row.metrics.items():
            wanted = {m: v for m, v in values.items() if m in metrics and v is not None}
            if name in images.get(row.name, {}):
                images[row.name][name] = {**images[row.name][name], **wanted}
    return replace(evaluation, images=images)


def _cells(columns: Mapping[str, list[float]], reference: str, metric: str) -> dict[str, Cell]:
    others = [row for row in columns if row != reference]
    raw = [paired_p(columns[row], columns[reference]) for row in others]
    corrected = dict(zip(others, holm(raw), strict=True))
    known = {row: statistics_of(values) for row, values in columns.items()}
    better = metric_info(metric).better
    # No mean is the best where it isn't known which direction is better.
    ranked = {row: found.mean * better for row, found in known.items() if found.mean is not None}
    best = max(ranked.values()) if better else None
    return {
        row: Cell(statistics=found, p=corrected.get(row), best=ranked.get(row) == best)
        for row, found in known.items()
    }


def _check_equal(what: str, recorded: Mapping[str, object]) -> None:
    """Raises QdmrError where two files record another ``what``; a file may record none."""
    known = [(file, value) for file, value in recorded.items() if value not in (None, "")]
    for file, value in known[1:]:
        first, expected = known[0]
        if value != expected:
            raise QdmrError(
                f"{file}: was evaluated with another {what} than {first} ({value} instead of "
                f"{expected}): their values don't compare"
            )


def _check_inputs(evaluations: Sequence[StoredEvaluation], names: Sequence[str]) -> None:
    first = evaluations[0]
    for other in evaluations[1:]:
        for name in names:
            ours, theirs = first.images[name][INPUT], other.images[name][INPUT]
            for metric in ours.keys() & theirs.keys():
                same = math.isclose(ours[metric], theirs[metric], rel_tol=_TOLERANCE)
                # A metric by a network is computed in float32, and depends on its weights.
                if not same and not metric_info(metric).reference:
                    raise QdmrError(
                        f"{other.source}: was evaluated on another test set than {first.source}: "
                        f"the input {name} has {metric} {theirs[metric]:g} instead of "
                        f"{ours[metric]:g}"
                    )


def _rows(evaluations: Sequence[StoredEvaluation]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns ``rows[name][image][metric]``; the input's row joins the metrics of all evaluations,
    since the input is the same in each."""
    rows: dict[str, dict[str, dict[str, float]]] = {INPUT: {}}
    for evaluation in evaluations:
        for image, stages in evaluation.images.items():
            rows[INPUT][image] = {**stages[INPUT], **rows[INPUT].get(image, {})}
            for stage in evaluation.evaluation.stages:
                rows.setdefault(f"{evaluation.name}/{stage}", {})[image] = stages[stage]
    return rows


def _metrics(
    rows: Mapping[str, Mapping[str, dict[str, float]]], names: Sequence[str], wanted: Sequence[str]
) -> list[str]:
    """Returns the metrics of the table, in the order of the files or of ``wanted``."""
    order = dict.fromkeys(m for row in rows.values() for n in names for m in row[n])
    complete = [m for m in order if any(all(m in row[n] for row in rows.values()) for n in names)]
    for metric in wanted:
        if metric not in complete:
            raise SettingsError(
                f"--metric {metric}: not every row has it; choose from {', '.join(complete)}"
            )
    if not complete:
        raise QdmrError("the evaluations have no metric in common; evaluate them alike")
    return list(dict.fromkeys(wanted)) or complete


def _notes(
    evaluations: Sequence[StoredEvaluation],
    names: Sequence[str],
    kept: Mapping[str, int],
    reference: str,
    comparisons: int,
) -> list[str]:
    notes = [
        f"Means over {len(names)} images, with 95 % bootstrap intervals (BCa, {RESAMPLES:,} "
        "resamples)."
    ]
    if any(len(evaluation.images) > len(names) for evaluation in evaluations):
        counts = ", ".join(f"{len(e.images)} in {e.name}" for e in evaluations)
        notes.append(f"Only images that every evaluation has are used: {len(names)} ({counts}).")
    for metric, count in kept.items():
        if count < len(names):
            notes.append(
                f"{metric_info(metric).label}: {count} images; of the others a row's value is "
                "missing or not finite."
            )
    notes += [_file_note(evaluations, metric) for metric in kept if metric_info(metric).reference]
    if not comparisons:
        return notes
    counts = "/".join(map(str, dict.fromkeys(kept.values())))
    notes.append(
        f"p: two-sided Wilcoxon signed-rank test against {reference} on n = {counts} pairs, "
        f"Holm-corrected for {comparisons} comparison{'s' * (comparisons > 1)} per metric."
    )
    if min(kept.values()) < FEWEST_PAIRS:
        notes.append(
            f"With fewer than {FEWEST_PAIRS} pairs the test can't find a difference at the 5 % "
            "level, however large."
        )
    return notes


def _file_note(evaluations: Sequence[StoredEvaluation], metric: str) -> str:
    """Names the file that a metric compared with, the same in all evaluations that record it."""
    info = metric_info(metric)
    known = [file for e in evaluations if (file := e.evaluation.reference(metric))]
    silent = [e.name for e in evaluations if not e.evaluation.reference(metric)]
    note = f"{info.label} with {info.reference_label} {known[0] if known else '(not recorded)'}"
    return f"{note}; not recorded in {', '.join(silent)}." if known and silent else f"{note}."
