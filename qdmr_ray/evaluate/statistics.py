"""Means with their uncertainty, and whether a difference between methods could be chance.

    summary([27.1, 28.4, 26.0])["ci95"]
    holm([paired_p(base, reference), paired_p(uda, reference)])

NumPy and SciPy only. Every interval is drawn with the same seed, so that the same figures give the
same interval, and methods judged on the same images are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from qdmr_ray.evaluate.metrics.metric import json_value

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
# With five pairs the smallest two-sided p of the signed-rank test is 2 / 2^5 = 0.0625.
FEWEST_PAIRS = 6
# Positions drawn at a time: 32 MB of them.
_CHUNK = 4_000_000


def summary(values: Sequence[float]) -> dict[str, Any]:
    """``{"mean", "median", "ci95": [low, high], "n"}`` of one figure over the images.

    What is not finite is null (an infinite PSNR makes the mean and the interval so); one image
    alone has no interval.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(array) if len(array) > 1 else (math.nan, math.nan)
    mean, median = (
        (float(np.mean(array)), float(np.median(array))) if len(array) else (math.nan,) * 2
    )
    interval = [low, high] if math.isfinite(low) and math.isfinite(high) else None
    return {
        "mean": json_value(mean),
        "median": json_value(median),
        "ci95": interval,
        "n": len(array),
    }


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, section 13.3).

    ``(nan, nan)`` where a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("an interval needs at least one value")
    if not np.isfinite(array).all():
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // len(array))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, len(array), size=(count, len(array)))
        means[start : start + count] = array[drawn].mean(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return float(low), float(high)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on pairs; 1 where no pair differs.

    Pairs without a difference are left out, as Wilcoxon does.

    Raises:
        ValueError: the two have unlike lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values make no pairs")
    differences = np.subtract(first, second, dtype=np.float64)
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p in the given order, at most 1."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
