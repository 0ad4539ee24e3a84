"""Intervals and tests against cases worked out by hand and against pinned values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qdmr_ray.evaluate.results import Statistics
from qdmr_ray.evaluate.statistics import bootstrap_interval, holm, paired_p, statistics_of


def known(values: list[float]) -> tuple[float | None, float | None, object, int]:
    found = statistics_of(values)
    return found.mean, found.median, found.ci95, found.n


def test_statistics_of_few_values() -> None:
    # Of two values a resample's mean is 0, 1 or 2, in 1, 2 and 1 of 4 cases: both ends are within
    # the outer 2.5 %, and two values have neither bias nor skewness to correct.
    assert known([0.0, 2.0]) == (1.0, 1.0, (0.0, 2.0), 2)
    assert known([1.0, 2.0, 9.0])[1] == 2.0


def test_identical_values_have_an_interval_without_width() -> None:
    """BCa is 0/0 there."""
    assert known([3.1] * 7)[2:] == ((3.1, 3.1), 7)


def test_values_that_differ_by_rounding_have_the_percentile_interval() -> None:
    """The jackknife's means are all alike then, and BCa is 0/0 as well."""
    low, high = bootstrap_interval([1.0, 1.0, 1.0, np.nextafter(1.0, 2.0)])
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.0)
    assert low <= high


def test_one_image_or_none_has_no_interval() -> None:
    assert statistics_of([4.0]) == Statistics(mean=4.0, median=4.0, ci95=None, n=1)
    assert statistics_of([]) == Statistics(mean=None, median=None, ci95=None, n=0)
    with pytest.raises(ValueError, match="two values"):
        bootstrap_interval([4.0])


def test_an_infinite_psnr_leaves_the_median() -> None:
    assert known([math.inf, 30.0, 20.0]) == (None, 30.0, None, 3)


def test_intervals_are_pinned_and_repeat() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=60)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(list(values))
    assert (low, high) == pytest.approx((1.518009227437616, 2.224117071834683), rel=1e-9)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide[0] < low
    assert high < wide[1]


def test_intervals_of_skewed_values_follow_the_skew() -> None:
    """Of 20 values with a long right tail, the true mean lies above the percentile interval more
    often than below it; BCa moves both ends to the right."""
    values = np.random.default_rng(1).exponential(size=20)
    resampled = np.random.default_rng(0).choice(values, (20_000, 20)).mean(axis=1)
    percentile = np.quantile(resampled, (0.025, 0.975))
    low, high = bootstrap_interval(values)
    assert low > percentile[0]
    assert high > percentile[1]


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("qdmr_ray.evaluate.statistics._DRAWN_AT_ONCE", 700)
    assert bootstrap_interval(values) == pytest.approx(whole, rel=1e-12)


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
