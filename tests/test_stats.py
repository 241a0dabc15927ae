"""Medians, bootstrap intervals and paired ratios."""

from __future__ import annotations

import math

import pytest

from taxbreak_fx.stats import interval, percentiles, ratio, ratio_of_ratios

NOISY = [100.0, 104.0, 97.0, 130.0, 101.0, 99.0, 103.0, 98.0, 102.0, 100.5]


def test_an_interval_is_ordered_around_its_median() -> None:
    found = interval(NOISY)
    assert found.low <= found.median <= found.high
    # sorted: 97 98 99 100 100.5 | 101 102 103 104 130: the median does not feel the 130
    assert found.median == 100.75
    assert found.samples == 10
    assert min(NOISY) <= found.low < found.median < found.high <= 104.0


def test_the_same_samples_give_the_same_interval() -> None:
    fine = [math.sin(number) for number in range(40)]  # no two resampled medians are alike
    assert interval(fine) == interval(list(fine))
    assert ratio(fine, [2.0] * 40) == ratio(list(fine), [2.0] * 40)


def test_equal_samples_have_no_width() -> None:
    found = interval([5.0] * 20)
    assert (found.low, found.median, found.high) == (5.0, 5.0, 5.0)


def test_more_samples_of_the_same_spread_narrow_the_interval() -> None:
    few, many = interval(NOISY), interval(NOISY * 20)
    assert many.high - many.low < few.high - few.low


def test_one_sample_is_an_interval_and_none_is_an_error() -> None:
    assert interval([3.0]).median == 3.0
    with pytest.raises(ValueError, match="no samples"):
        interval([])


def test_a_ratio_is_paired() -> None:
    # The host slowed down fourfold half way through; every pair still says one half.
    base = [100.0, 110.0, 400.0, 440.0]
    found = ratio([us / 2 for us in base], base)
    assert (found.low, found.median, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="broadcast"):
        ratio([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_ratio_is_the_median_of_the_pairwise_ratios_not_the_ratio_of_medians() -> None:
    # ratios 1, 2, 4 → 2; the medians are 4 and 2 too, the means are not
    assert ratio([1.0, 4.0, 40.0], [1.0, 2.0, 10.0]).median == 2.0


def test_a_ratio_of_ratios_compares_through_a_common_base() -> None:
    # inductor 0.4 of eager, dynamo 0.8 of eager, in unequal numbers of pairs: one half
    found = ratio_of_ratios([0.4] * 10, [0.8] * 12)
    assert (found.low, found.median, found.high, found.samples) == (0.5, 0.5, 0.5, 10)
    noisy = ratio_of_ratios([us / 100 for us in NOISY], [us / 50 for us in NOISY])
    assert noisy.median == pytest.approx(0.5)
    assert noisy.low < noisy.median < noisy.high
    assert noisy == ratio_of_ratios([us / 100 for us in NOISY], [us / 50 for us in NOISY])


def test_percentiles() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert (found.p5, found.p50, found.p95, found.samples) == (5.0, 50.0, 95.0, 101)
