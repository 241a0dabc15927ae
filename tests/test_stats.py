"""Medians, bootstrap intervals and paired ratios, and that a variant against itself stays inside its interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from taxbreak_fx.compare import LEAST_EFFECT, UNCHANGED, verdict_of
from taxbreak_fx.stats import CONFIDENCE, interval, percentiles, ratio, ratio_of_ratios, student_t

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
    positive = [2.0 + value for value in fine]
    assert ratio(positive, [2.0] * 40) == ratio(list(positive), [2.0] * 40)


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


def test_a_ratio_is_the_centre_of_the_pairwise_ratios_not_the_ratio_of_medians() -> None:
    # The logarithms of 1/2, 2, 1, 1 are centred on 0; the medians are 2 and 1, the means 2.75 and 1.75.
    assert ratio([1.0, 4.0, 3.0, 3.0], [2.0, 2.0, 3.0, 3.0]).median == pytest.approx(1.0)


def test_the_order_within_pairs_is_taken_out() -> None:
    # Whichever stands first takes 10 % longer; the variant takes half of the base's time.
    order = [(1.1, 1.0) if number % 2 else (1.0, 1.1) for number in range(20)]
    found = ratio([50.0 * own for own, _ in order], [100.0 * base for _, base in order])
    assert (found.low, found.median, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_tenth_of_the_pairs_on_either_side_moves_nothing() -> None:
    calm = [1.0 + 0.01 * math.sin(number) for number in range(20)]
    hit = [0.1, *calm[1:-1], 50.0]
    assert ratio(hit, [1.0] * 20).median == pytest.approx(ratio(calm, [1.0] * 20).median, abs=2e-3)


def test_an_interval_of_few_pairs_is_finite_and_fewer_are_an_error() -> None:
    wide = ratio([1.0, 2.0, 8.0], [1.0, 1.0, 1.0])
    assert 0.0 < wide.low < 1.0 < wide.high < math.inf
    with pytest.raises(ValueError, match="3 pairs or more"):
        ratio([1.0, 2.0], [1.0, 1.0])


def test_student_t_against_published_quantiles() -> None:
    # Abramowitz and Stegun, table 26.10
    published = {(0.95, 1): 12.706, (0.95, 2): 4.303, (0.95, 3): 3.182, (0.99, 10): 3.169, (0.999, 4): 8.610}
    for (confidence, freedom), value in published.items():
        assert student_t(confidence, freedom) == pytest.approx(value, abs=5e-4)
    assert student_t(CONFIDENCE, 100_000) == pytest.approx(3.2905, abs=1e-3)  # the normal distribution's


def test_a_ratio_of_ratios_compares_through_a_common_base() -> None:
    # inductor 0.4 of eager, dynamo 0.8 of eager, in unequal numbers of pairs: one half
    found = ratio_of_ratios([0.4] * 10, [0.8] * 12)
    assert (found.low, found.median, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.samples == 10
    noisy = ratio_of_ratios([us / 100 for us in NOISY], [us / 50 for us in NOISY])
    assert noisy.median == pytest.approx(0.5)
    assert noisy.low < noisy.median < noisy.high
    assert noisy == ratio_of_ratios([us / 100 for us in NOISY], [us / 50 for us in NOISY])


def test_percentiles() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert (found.p5, found.p50, found.p95, found.samples) == (5.0, 50.0, 95.0, 101)


# --- a variant against itself ---------------------------------------------------------------------------------------
#
# Simulated A/A reviews: one series of measurements of one thing, dealt to A and B in the order A B B A that the pairs
# have.  What differs is then noise alone, whatever its shape.

Noise = Callable[[np.random.Generator, int], np.ndarray]
REVIEWS = 3_000
WORST_RATE = 0.0075  # nominal 0.001; what correlates neighbouring pairs may add to it


def white(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.normal(0.0, 0.035, count)


def random_walk(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.cumsum(generator.normal(0.0, 0.03, count)) + 0.3 * white(generator, count)


def correlated(share: float) -> Noise:
    def noise(generator: np.random.Generator, count: int) -> np.ndarray:
        series = generator.normal(0.0, 0.04, count)
        for number in range(1, count):
            series[number] += share * series[number - 1]
        return series

    return noise


def steps(generator: np.random.Generator, count: int) -> np.ndarray:
    up, down = generator.integers(0, count, 2)
    return 0.3 * white(generator, count) + 0.4 * (np.arange(count) > up) - 0.2 * (np.arange(count) > down)


def bursts(generator: np.random.Generator, count: int) -> np.ndarray:
    series, start = 0.5 * white(generator, count), 0
    while (start := start + int(generator.geometric(0.05))) < count:
        length = int(generator.geometric(0.3))
        series[start : start + length] += generator.exponential(0.5)
        start += length
    return series


def heavy_tails(generator: np.random.Generator, count: int) -> np.ndarray:
    return 0.02 * generator.standard_t(2, count)


def no_variance(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(0.01 * generator.standard_cauchy(count), -5.0, 5.0)


def only_slower(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.log1p(generator.lognormal(-4.0, 1.5, count))


def waves(generator: np.random.Generator, count: int) -> np.ndarray:
    phase, period = generator.uniform(), generator.uniform(3.0, 50.0)
    return 0.1 * np.sin(2 * np.pi * (np.arange(count) / period + phase)) + 0.3 * white(generator, count)


def trend(generator: np.random.Generator, count: int) -> np.ndarray:
    return 0.02 * np.arange(count) + 0.3 * white(generator, count)


def first_is_slower(generator: np.random.Generator, count: int) -> np.ndarray:
    return white(generator, count) + 0.1 * (np.arange(count) % 2 == 0)


def coarse_clock(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.round(white(generator, count) * 40) / 40


NOISES: dict[str, Noise] = {
    "white": white,
    "random walk": random_walk,
    "weakly correlated": correlated(0.5),
    "strongly correlated": correlated(0.9),
    "steps": steps,
    "bursts": bursts,
    "heavy tails": heavy_tails,
    "no variance": no_variance,
    "only slower": only_slower,
    "waves": waves,
    "trend": trend,
    "first is slower": first_is_slower,
    "coarse clock": coarse_clock,
}


def dealt(series: np.ndarray, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Times of the variant, ``effect`` slower, and of the base, from one series in the order A B B A."""
    places = np.arange(series.size).reshape(-1, 2)
    odd = np.arange(len(places)) % 2
    base, own = places[np.arange(len(places)), odd], places[np.arange(len(places)), 1 - odd]
    return np.exp(series[own]) * (1.0 + effect), np.exp(series[base])


def reported(noise: Noise, pairs: int, effect: float = 0.0) -> float:
    """The share of simulated reviews that report a change."""
    generator = np.random.default_rng(3)
    found = [dealt(noise(generator, 2 * pairs), effect) for _ in range(REVIEWS)]
    return sum(verdict_of(ratio(own, base), LEAST_EFFECT) != UNCHANGED for own, base in found) / REVIEWS  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("pairs", [20, 40, 60])
def test_a_variant_against_itself_reports_no_change(name: str, pairs: int) -> None:
    assert reported(NOISES[name], pairs) <= WORST_RATE


def test_the_rate_over_all_kinds_of_noise_lets_twenty_reviews_pass() -> None:
    rate = sum(reported(noise, 40) for noise in NOISES.values()) / len(NOISES)
    assert rate < 0.002  # (1 − 0.002)^20 = 0.96: of 25 machines, 24 see none in twenty reviews


def test_a_bootstrap_of_the_median_would_report_changes_that_are_none() -> None:
    # The rule that was here before: it shows that the simulation can fail.
    generator = np.random.default_rng(3)
    outside = 0
    for _ in range(200):
        own, base = dealt(white(generator, 80))
        found = interval(list(own / base))
        outside += not found.low <= 1.0 <= found.high
    assert outside / 200 > WORST_RATE


def test_a_true_change_of_three_percent_is_mostly_found() -> None:
    # 40 pairs whose ratios vary by 5 %: each time by 3.5 %
    assert reported(white, 40, effect=0.03) > 0.5
    assert reported(white, 40, effect=-0.03) > 0.5
    assert reported(white, 60, effect=0.03) > 0.8
    assert reported(random_walk, 40, effect=0.05) > 0.8


def test_two_variants_alike_report_no_change_through_eager() -> None:
    generator = np.random.default_rng(5)
    wrong = 0
    for _ in range(REVIEWS):
        first, second = (dealt(random_walk(generator, 80)) for _ in range(2))
        found = ratio_of_ratios(list(first[0] / first[1]), list(second[0] / second[1]))
        wrong += verdict_of(found, LEAST_EFFECT) != UNCHANGED
    assert wrong / REVIEWS <= WORST_RATE
