"""Means with their uncertainty, and whether a difference between methods could be chance.

    statistics_of([27.1, 28.4, 26.0]).ci95
    holm([paired_p(base, reference), paired_p(uda, reference)])

Every interval is drawn with the same seed, so that the same values give the same interval, and
methods that were judged on the same images are resampled alike.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

from qdmr_ray.config import code_version
from qdmr_ray.evaluate.metrics.metric import json_value
from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info
from qdmr_ray.evaluate.names import INPUT
from qdmr_ray.evaluate.results import (
    Evaluation,
    FailedPhotograph,
    ImageValues,
    Judged,
    LeftOut,
    PhotographResult,
    Provenance,
    Statistics,
    StatisticsTable,
)

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
# With five pairs the smallest two-sided p of the signed-rank test is 2 / 2^5 = 0.0625.
FEWEST_PAIRS = 6
# Values drawn at a time: 32 MB of positions and as much of values.
_DRAWN_AT_ONCE = 4_000_000


def summarize(
    rows: Sequence[Judged],
    stages: Sequence[str],
    *,
    failed: Sequence[FailedPhotograph] = (),
    provenance: Provenance | None = None,
) -> Evaluation:
    """Builds the evaluation of the photographs in ``rows``."""
    known = provenance or Provenance()
    statistics = statistics_table([row.values for row in rows], [INPUT, *stages])
    means: ImageValues = {
        name: {metric: found.mean for metric, found in by_metric.items()}
        for name, by_metric in statistics.items()
    }
    keys = {metric.info.reference for metric in METRICS.values()}
    return Evaluation(
        images=len(rows),
        input=means.pop(INPUT),
        stages=means,
        statistics=statistics,
        failed=tuple(failed),
        left_out=tuple(left_out for row in rows for left_out in _left_out(row)),
        provenance=known,
        environment={"qdmr_ray": code_version(), **_environment(rows)},
        per_image=tuple(PhotographResult.of(row.name, row.values) for row in rows),
        **{key: file for key, file in (known.model_extra or {}).items() if key in keys},
    )


def statistics_of(values: Sequence[float] | np.ndarray) -> Statistics:
    """Returns mean, median and interval of one metric over the images. A result that is not finite
    is null (an infinite PSNR makes mean and interval so); one image alone has no interval."""
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(array) if len(array) > 1 else (math.nan, math.nan)
    return Statistics(
        mean=json_value(float(np.mean(array))) if len(array) else None,
        median=json_value(float(np.median(array))) if len(array) else None,
        ci95=(low, high) if math.isfinite(low) and math.isfinite(high) else None,
        n=len(array),
    )


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Returns the BCa bootstrap interval of the mean of two or more values, by SciPy (Efron,
    "Better bootstrap confidence intervals", 1987).

    BCa corrects the percentile interval, which for few and skewed values is too narrow and on the
    wrong side, for bias and for a spread that changes with the mean. Identical values give an
    interval without width. Where values differ by rounding alone, BCa isn't defined and the
    percentile interval of the same resamples is returned; ``(nan, nan)`` where a value is not
    finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise ValueError("an interval needs at least two values")
    if not np.isfinite(array).all():
        return math.nan, math.nan
    if np.ptp(array) == 0.0:
        return float(array[0]), float(array[0])
    with warnings.catch_warnings():
        # SciPy warns of 0/0 in the acceleration; NaN is handled below.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (array,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="BCa",
            batch=max(1, _DRAWN_AT_ONCE // len(array)),
            rng=np.random.default_rng(SEED),
        )
    low, high = found.confidence_interval
    if math.isnan(low) or math.isnan(high):
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(found.bootstrap_distribution, (tail, 1.0 - tail))
    return float(low), float(high)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test on pairs, 1 where no pair differs;
    pairs without a difference are left out, as Wilcoxon does. Raises ValueError for unlike
    lengths."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values make no pairs")
    differences = np.subtract(first, second, dtype=np.float64)
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p in the given order, at most 1."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * np.take(p_values, order)))
    return adjusted.tolist()


def statistics_table(rows: Sequence[ImageValues], names: Sequence[str]) -> StatisticsTable:
    """Returns ``[name][metric]``: the statistics over the photographs, a row each, where all of
    ``names`` have a value."""
    metrics = dict.fromkeys(m for row in rows for values in row.values() for m in values)
    statistics: StatisticsTable = {name: {} for name in names}
    for metric in metrics:
        lines = [[row.get(name, {}).get(metric) for name in names] for row in rows]
        usable = np.array([line for line in lines if None not in line], dtype=np.float64)
        for name, values in zip(names, usable.reshape(-1, len(names)).T, strict=True):
            statistics[name][metric] = statistics_of(values)
    return statistics


def _environment(rows: Sequence[Judged]) -> dict[str, str]:
    """Collects the versions and devices that computed the photographs; several values are joined
    where an evaluation went on elsewhere, or on unlike nodes."""
    names = dict.fromkeys(name for row in rows for name in row.environment)
    found = {n: {row.environment[n] for row in rows if n in row.environment} for n in names}
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _left_out(row: Judged) -> list[LeftOut]:
    """Returns the metrics in whose means this photograph doesn't count, with the reasons."""
    reasons = dict(row.left_out)
    for name, values in row.values.items():
        for metric, value in values.items():
            if value is None:
                label = metric_info(metric).label
                reasons[metric] = f"{name} and ground truth are identical, {label} is infinite"
    return [LeftOut(name=row.name, metric=m, reason=reason) for m, reason in reasons.items()]
