"""One table over several evaluations, as a paper prints it: means, intervals and significance.

    evaluations = [read_evaluation(open_location(run)) for run in ("runs/a", "runs/b")]
    print(comparison_text(compare(named_apart(evaluations)), "latex"))

Images are paired by name, and only those count that every evaluation has.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info
from qdmr_ray.evaluate.statistics import FEWEST_PAIRS, RESAMPLES, holm, paired_p, summary
from qdmr_ray.models.layout import EVALUATION_FILE
from qdmr_ray.storage import Location

INPUT = "input"
# Of a file's provenance: what must be the same for two figures to compare.
_SAME = ("test_set", "border", "luma")
# The inputs' own figures tell test sets apart too; they come from float64.
_TOLERANCE = 1e-6

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """One ``evaluation.json``: ``images[image][stage][metric]``, figures that are null left out."""

    name: str
    source: str
    stages: list[str]
    images: dict[str, dict[str, Figures]]
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A mean with its 95 % interval; ``p`` is corrected, ``None`` in the reference's row."""

    mean: float
    interval: tuple[float, float] | None
    images: int
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
    """The evaluation in a run folder, in the folder given as ``--out``, or in the file itself.

    Raises:
        QdmrError: there is none, or it holds no figures of single images.
    """
    file = place if place.name.endswith(".json") else place.join(EVALUATION_FILE)
    if not file.exists():
        raise QdmrError(f"{file.uri}: there is no evaluation; run qdmr evaluate first")
    folder = file.path.rsplit("/", 2)
    try:
        content = json.loads(file.read_bytes())
        stages = list(content["stages"])
        images = {
            str(row["name"]): {stage: _finite(row.get(stage, {})) for stage in (INPUT, *stages)}
            for row in content["per_image"]
        }
        provenance = dict(content.get("provenance") or {})
        references = (metric.info.reference for metric in METRICS.values())
        named = {key: content.get(key) for key in references if key}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QdmrError(f"{file.uri}: is no evaluation ({error!r}); evaluate again") from error
    if len(images) < len(content["per_image"]):
        raise QdmrError(f"{file.uri}: two images have one name, so they can't be paired")
    return StoredEvaluation(
        name=folder[-2] if len(folder) > 1 else file.uri,
        source=file.uri,
        stages=stages,
        images=images,
        provenance={**provenance, **named},
    )


def named_apart(evaluations: Sequence[StoredEvaluation]) -> list[StoredEvaluation]:
    """Evaluations whose folders have one name are called by their whole path.

    Raises:
        SettingsError: the same file is named twice.
    """
    sources = Counter(evaluation.source for evaluation in evaluations)
    twice = next((source for source, count in sources.items() if count > 1), None)
    if twice is not None:
        raise SettingsError(f"{twice} is named twice: name each evaluation once")
    names = Counter(evaluation.name for evaluation in evaluations)
    return [
        e if names[e.name] == 1 else replace(e, name=e.source.removesuffix(f"/{EVALUATION_FILE}"))
        for e in evaluations
    ]


def compare(
    evaluations: Sequence[StoredEvaluation],
    *,
    metrics: Sequence[str] = (),
    reference: str = INPUT,
) -> Comparison:
    """The table of ``evaluations``: a row for the input, then one for every stage of each.

    ``metrics`` are those that every row has, if none is named. Significance is Wilcoxon's
    signed-rank test of each row against ``reference`` (a row's name) on the same images, with
    Holm's correction over the rows of a metric.

    Raises:
        QdmrError: other test sets or settings, or no common image.
        SettingsError: an unknown metric or reference.
    """
    _check_same(evaluations)
    common = set.intersection(*(set(evaluation.images) for evaluation in evaluations))
    if not common:
        places = ", ".join(evaluation.source for evaluation in evaluations)
        raise QdmrError(f"{places}: have no image in common: these are different test sets")
    names = [name for name in evaluations[0].images if name in common]
    _check_inputs(evaluations, names)
    figures = _rows(evaluations)
    if reference not in figures:
        raise SettingsError(f"--reference {reference}: choose from {', '.join(figures)}")
    chosen = _metrics(figures, names, metrics)
    for metric in chosen:
        if reference_key := metric_info(metric).reference:
            _check_equal(evaluations, reference_key)
    rows: dict[str, dict[str, Cell]] = {row: {} for row in figures}
    kept: dict[str, int] = {}
    for metric in chosen:
        usable = [n for n in names if all(metric in row[n] for row in figures.values())]
        kept[metric] = len(usable)
        columns = {row: [by_image[n][metric] for n in usable] for row, by_image in figures.items()}
        for row, cell in _cells(columns, reference, metric).items():
            rows[row][metric] = cell
    return Comparison(
        metrics=chosen,
        rows=rows,
        reference=reference,
        images=len(names),
        notes=_notes(evaluations, names, kept, reference, len(figures) - 1),
    )


def _cells(columns: Mapping[str, list[float]], reference: str, metric: str) -> dict[str, Cell]:
    others = [row for row in columns if row != reference]
    raw = [paired_p(columns[row], columns[reference]) for row in others]
    corrected = dict(zip(others, holm(raw), strict=True))
    known = {row: summary(values) for row, values in columns.items()}
    better = metric_info(metric).better
    best = max(row["mean"] * better for row in known.values())
    return {
        row: Cell(
            mean=figures["mean"],
            interval=tuple(figures["ci95"]) if figures["ci95"] else None,
            images=figures["n"],
            p=corrected.get(row),
            best=bool(better) and figures["mean"] * better == best,
        )
        for row, figures in known.items()
    }


def _finite(figures: Mapping[str, Any]) -> Figures:
    return {
        metric: float(value)
        for metric, value in figures.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _check_same(evaluations: Sequence[StoredEvaluation]) -> None:
    if not evaluations:
        raise SettingsError("name at least one run or evaluation")
    for key in _SAME:
        _check_equal(evaluations, key)


def _check_equal(evaluations: Sequence[StoredEvaluation], key: str) -> None:
    """Files of before the provenance was kept are judged by their inputs' figures alone."""
    known = [e for e in evaluations if e.provenance.get(key) is not None]
    for other in known[1:]:
        first, second = known[0].provenance[key], other.provenance[key]
        if first != second:
            what = "another test set" if key == "test_set" else f"another {key}"
            raise QdmrError(
                f"{other.source}: was evaluated with {what} than {known[0].source} "
                f"({second} instead of {first}): their figures don't compare"
            )


def _check_inputs(evaluations: Sequence[StoredEvaluation], names: Sequence[str]) -> None:
    first = evaluations[0]
    for other in evaluations[1:]:
        for name in names:
            ours, theirs = first.images[name][INPUT], other.images[name][INPUT]
            for metric in ours.keys() & theirs.keys():
                # Networks compute in float32, and another file gives other values.
                if metric_info(metric).reference:
                    continue
                if not math.isclose(ours[metric], theirs[metric], rel_tol=_TOLERANCE):
                    raise QdmrError(
                        f"{other.source}: was evaluated on another test set than {first.source}: "
                        f"the input {name} has {metric} {theirs[metric]:g} instead of "
                        f"{ours[metric]:g}"
                    )


def _rows(evaluations: Sequence[StoredEvaluation]) -> dict[str, dict[str, Figures]]:
    """``rows[name][image][metric]``; the input is the same for all, so it is taken from each
    evaluation as far as it was measured."""
    inputs: dict[str, Figures] = {}
    for evaluation in evaluations:
        for image, stages in evaluation.images.items():
            inputs[image] = {**stages[INPUT], **inputs.get(image, {})}
    rows = {INPUT: inputs}
    for evaluation in evaluations:
        for stage in evaluation.stages:
            found = {image: stages[stage] for image, stages in evaluation.images.items()}
            rows[f"{evaluation.name}/{stage}"] = found
    return rows


def _metrics(
    rows: Mapping[str, Mapping[str, Figures]], names: Sequence[str], wanted: Sequence[str]
) -> list[str]:
    """The metrics of the table, in the files' order or as they were named."""
    order = dict.fromkeys(m for row in rows.values() for n in names for m in row[n])
    complete = [
        metric
        for metric in order
        if any(all(metric in row[n] for row in rows.values()) for n in names)
    ]
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
        f"Means over {len(names)} images, with 95 % bootstrap intervals ({RESAMPLES:,} resamples)."
    ]
    if any(len(evaluation.images) > len(names) for evaluation in evaluations):
        counts = ", ".join(f"{len(e.images)} in {e.name}" for e in evaluations)
        notes.append(f"Only images that every evaluation has are used: {len(names)} ({counts}).")
    for metric, count in kept.items():
        if count < len(names):
            label = metric_info(metric).label
            notes.append(
                f"{label}: {count} images; of the others a row's value is missing or not finite."
            )
    for metric in kept:
        if metric_info(metric).reference:
            notes.append(_file_note(evaluations, metric))
    if not comparisons:
        return notes
    notes.append(
        f"p: two-sided Wilcoxon signed-rank test against {reference} on n = "
        f"{_counts(list(kept.values()))} pairs, Holm-corrected for {comparisons} "
        f"{'comparison' if comparisons == 1 else 'comparisons'} per metric."
    )
    if min(kept.values()) < FEWEST_PAIRS:
        notes.append(
            f"With fewer than {FEWEST_PAIRS} pairs the test can't find a difference at the 5 % "
            "level, however large."
        )
    return notes


def _file_note(evaluations: Sequence[StoredEvaluation], metric: str) -> str:
    """What a metric compared with: the same in all evaluations that say it."""
    info = metric_info(metric)
    key = info.reference
    known = [e.provenance[key] for e in evaluations if e.provenance.get(key)]
    silent = [e.name for e in evaluations if not e.provenance.get(key)]
    note = f"{info.label} with {info.reference_label} {known[0] if known else '(not recorded)'}"
    return f"{note}; not recorded in {', '.join(silent)}." if known and silent else f"{note}."


def _counts(counts: Sequence[int]) -> str:
    return "/".join(str(count) for count in (dict.fromkeys(counts)))
