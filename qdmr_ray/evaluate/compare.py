"""One table over several evaluations, as a paper prints it: means, intervals and significance.

    evaluations = [*read_evaluations(open_location("runs/a")), *read_evaluations(…)]
    print(comparison_text(compare(named_apart(evaluations)), "latex"))

Images are paired by name, and only those count that every evaluation has. Of a sweep, the trials
that differ in their seeds alone are one row: each image counts once, with its mean over the seeds.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import INPUT
from qdmr_ray.evaluate.results import Statistics
from qdmr_ray.evaluate.statistics import FEWEST_PAIRS, RESAMPLES, holm, paired_p, statistics_of
from qdmr_ray.evaluate.stored import StoredEvaluation, with_both_lenses

# Relative difference allowed between inputs of one test set, whose values are float64.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A metric of one row; ``p`` is corrected, None in the reference's row. In a table over seeds,
    ``spread`` is the standard deviation of the seeds' means, None with a single seed, and
    ``difference`` that to the reference's row, None in this row itself."""

    statistics: Statistics
    p: float | None
    best: bool
    spread: float | None = None
    difference: Statistics | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table: ``rows[name][metric]``, and what a reader must know about it. ``over_seeds`` says
    that rows are means over the seeds of a sweep."""

    metrics: list[str]
    rows: dict[str, dict[str, Cell]]
    reference: str
    images: int
    notes: list[str]
    over_seeds: bool = False


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

    Evaluations of one group are one row, in which an image has its mean over them.
    """
    if not evaluations:
        raise SettingsError("name at least one run or evaluation")
    evaluations = [with_both_lenses(evaluation, metrics) for evaluation in evaluations]
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
    tables = _tables(evaluations)
    values = {row: _mean_over_seeds(found) for row, found in tables.items()}
    over_seeds = any(evaluation.group for evaluation in evaluations)
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
            if over_seeds:
                means = [fmean(table[n][metric] for n in usable) for table in tables[row] if usable]
                difference = statistics_of(np.subtract(columns[row], columns[reference]))
                cell = replace(
                    cell,
                    spread=stdev(means) if len(means) > 1 else None,
                    difference=None if row == reference else difference,
                )
            rows[row][metric] = cell
    return Comparison(
        metrics=chosen,
        rows=rows,
        reference=reference,
        images=len(names),
        notes=_notes(evaluations, names, kept, reference, len(values) - 1),
        over_seeds=over_seeds,
    )


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


def _tables(
    evaluations: Sequence[StoredEvaluation],
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Returns ``tables[row][seed][image][metric]``, of a row that is no group's for a single seed.
    The input's row joins the metrics of all evaluations, since the input is the same in each. A
    group's row is called after its stage only where the group has several."""
    inputs: dict[str, dict[str, float]] = {}
    tables = {INPUT: [inputs]}
    for evaluation in evaluations:
        stages = list(evaluation.evaluation.stages)
        for image, by_stage in evaluation.images.items():
            inputs[image] = {**by_stage[INPUT], **inputs.get(image, {})}
        for stage in stages:
            alone = evaluation.group and len(stages) == 1
            row = evaluation.name if alone else f"{evaluation.name}/{stage}"
            table = {image: by_stage[stage] for image, by_stage in evaluation.images.items()}
            tables.setdefault(row, []).append(table)
    return tables


def _mean_over_seeds(
    tables: Sequence[Mapping[str, dict[str, float]]],
) -> dict[str, dict[str, float]]:
    """Returns ``[image][metric]``, the mean over tables, of what all of them have."""
    if len(tables) == 1:
        return dict(tables[0])
    images = [image for image in tables[0] if all(image in table for table in tables)]
    return {
        image: {
            metric: fmean(table[image][metric] for table in tables)
            for metric in tables[0][image]
            if all(metric in table[image] for table in tables)
        }
        for image in images
    }


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
    bootstrap = f"with 95 % bootstrap intervals (BCa, {RESAMPLES:,} resamples)"
    notes = [f"Means over {len(names)} images, {bootstrap}."]
    if any(evaluation.group for evaluation in evaluations):
        notes = [
            f"Means over {len(names)} images of each image's mean over {_seed_counts(evaluations)}"
            "; ± is the standard deviation of the seeds' means.",
            f"Difference to {reference}: mean over the images, {bootstrap}.",
        ]
    if missing := dict.fromkeys(trial for e in evaluations for trial in e.missing):
        notes.append(f"Without an evaluation, and so in no row: {', '.join(missing)}.")
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


def _seed_counts(evaluations: Sequence[StoredEvaluation]) -> str:
    """Says how many seeds the rows have: ``3 seeds``, ``3 seeds (oracle 2)``."""
    counts = Counter(evaluation.name for evaluation in evaluations)
    most = max(counts.values())
    fewer = [f"{name} {count}" for name, count in counts.items() if count < most]
    return f"{most} seed{'s' * (most > 1)}" + (f" ({', '.join(fewer)})" if fewer else "")


def _file_note(evaluations: Sequence[StoredEvaluation], metric: str) -> str:
    """Names the file that a metric compared with, the same in all evaluations that record it."""
    info = metric_info(metric)
    known = [file for e in evaluations if (file := e.evaluation.reference(metric))]
    silent = [e.name for e in evaluations if not e.evaluation.reference(metric)]
    note = f"{info.label} with {info.reference_label} {known[0] if known else '(not recorded)'}"
    return f"{note}; not recorded in {', '.join(silent)}." if known and silent else f"{note}."
