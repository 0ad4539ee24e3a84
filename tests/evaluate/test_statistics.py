"""Intervals and tests against cases worked out by hand, and against SciPy's own bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qdmr_ray.evaluate.statistics import bootstrap_interval, holm, paired_p, summary


def test_summary_of_few_values() -> None:
    # Of two values a resample's mean is 0, 1 or 2, in 1, 2 and 1 of 4 cases: both ends are within
    # the outer 2.5 %.
    assert summary([0.0, 2.0]) == {"mean": 1.0, "median": 1.0, "ci95": [0.0, 2.0], "n": 2}
    assert summary([3.0] * 7) == {"mean": 3.0, "median": 3.0, "ci95": [3.0, 3.0], "n": 7}
    assert summary([1.0, 2.0, 9.0])["median"] == 2.0


def test_one_image_or_none_has_no_interval() -> None:
    assert summary([4.0]) == {"mean": 4.0, "median": 4.0, "ci95": None, "n": 1}
    assert summary([]) == {"mean": None, "median": None, "ci95": None, "n": 0}


def test_an_infinite_psnr_leaves_the_median() -> None:
    figures = summary([math.inf, 30.0, 20.0])
    assert figures == {"mean": None, "median": 30.0, "ci95": None, "n": 3}


def test_interval_agrees_with_scipy_and_repeats() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=60)
    low, high = bootstrap_interval(values)
    # Another seed than ours: the ends scatter by about 1 % of the interval.
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="percentile", rng=1
    ).confidence_interval
    tolerance = 0.05 * (high - low)
    assert low == pytest.approx(reference.low, abs=tolerance)
    assert high == pytest.approx(reference.high, abs=tolerance)
    assert (low, high) == bootstrap_interval(list(values))
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide[0] < low
    assert high < wide[1]


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("qdmr_ray.evaluate.statistics._CHUNK", 700)
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.02)


def test_signed_rank_test_by_hand() -> None:
    # All of n differences positive: of the 2^n signs only these and their opposites are as extreme.
    for pairs in (5, 6, 8):
        first = [float(i + 1) for i in range(pairs)]
        assert paired_p(first, [0.0] * pairs) == pytest.approx(2 / 2**pairs)
    # Differences 1, 2, 3 and -4: rank sums 6 and 4, of 16 signs 14 are as even or less.
    assert paired_p([1.0, 2.0, 3.0, -4.0], [0.0] * 4) == pytest.approx(14 / 16)
    assert paired_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired_p([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1, never less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
