"""Medians with bootstrap intervals, and the centres of paired ratios with intervals that A/A runs respect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from taxbreak_fx.record import Interval, Percentiles

RESAMPLES = 1_000
CONFIDENCE = 0.999  # at 95 % one of twenty comparisons of a variant with itself would report a change
TRIMMED = 0.1  # of the pairs on each side: what a burst hits, at 96 % of the mean's efficiency on quiet machines
FEWEST_RATIOS = 3
MOST = 300.0  # half-width in logarithms beyond which nothing is known and its exponential would overflow
_SEED = 20  # intervals of the same samples are the same interval


def interval(samples: Sequence[float]) -> Interval:
    """Median of ``samples`` with its 95 % percentile-bootstrap interval, in the samples' unit."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples")
    draws = np.random.default_rng(_SEED).integers(0, values.size, size=(RESAMPLES, values.size))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    median = float(np.median(values))
    return Interval(median=median, low=min(float(low), median), high=max(float(high), median), samples=values.size)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Centre of the pairwise ratios of two equally long series measured A B B A A B …, with its 99.9 % interval.

    Works on logarithms: the effect of standing first or second in a pair is taken out, then the centre is the mean
    without the lowest and highest tenth, and the interval is Yuen's (Biometrika 61, 1974): Student's t with the
    winsorised deviation.  Drift, steps and bursts cancel inside pairs or fall to the trimming, so that a variant
    against itself is outside its interval as rarely as stated (tests/test_stats.py proves it on simulated noise).

    Raises ``ValueError`` for fewer than three pairs, which say nothing of their own scatter.
    """
    pairs = np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float)
    centre, reach = _centre(pairs)
    return _ratio_interval(centre, reach, len(pairs))


def ratio_of_ratios(first: Sequence[float], second: Sequence[float]) -> Interval:
    """``first`` ÷ ``second`` where each is a series of paired ratios to a common base, with its 99.9 % interval.

    The two reaches add in quadrature (Zou and Donner, Statistics in Medicine 27, 2008): the series are independent.
    Raises ``ValueError`` as ``ratio`` does.
    """
    one, other = _centre(np.asarray(first, dtype=float)), _centre(np.asarray(second, dtype=float))
    reach = math.hypot(one[1], other[1])
    return _ratio_interval(one[0] - other[0], reach, min(len(first), len(second)))


def percentiles(samples: Sequence[float]) -> Percentiles:
    """p5, p50 and p95 of ``samples``, in the samples' unit."""
    p5, p50, p95 = (float(value) for value in np.percentile(np.asarray(samples, dtype=float), [5, 50, 95]))
    return Percentiles(p5=p5, p50=p50, p95=p95, samples=len(samples))


def _centre(ratios: np.ndarray) -> tuple[float, float]:
    """Trimmed mean of the logarithms of ``ratios`` and the half-width of its interval, both as logarithms."""
    if ratios.size < FEWEST_RATIOS:
        raise ValueError(f"a paired ratio needs {FEWEST_RATIOS} pairs or more, not {ratios.size}")
    logs = np.log(ratios)
    # Every other pair was measured in the other order; centred on their common middle, the order is gone.
    order = (np.median(logs[0::2]) - np.median(logs[1::2])) / 2
    logs = np.sort(logs - np.where(np.arange(logs.size) % 2 == 0, order, -order))
    cut = int(TRIMMED * logs.size)
    kept = logs[cut : logs.size - cut]
    deviation = float(np.std(np.clip(logs, kept[0], kept[-1]), ddof=1))
    # Two degrees of freedom are spent: the centre and the order.
    reach = student_t(CONFIDENCE, kept.size - 2) * deviation * math.sqrt(logs.size) / kept.size
    return float(np.mean(kept)), min(reach, MOST)


def _ratio_interval(centre: float, reach: float, samples: int) -> Interval:
    low, high = math.exp(centre - reach), math.exp(centre + reach)
    return Interval(median=math.exp(centre), low=low, high=high, samples=samples)


@lru_cache(maxsize=256)
def student_t(confidence: float, freedom: int) -> float:
    """The t within which Student's distribution holds ``confidence``, both sides together; ``freedom`` is at least 1.

    Inverts the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4 by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, freedom) < confidence else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _t_within(angle: float, freedom: int) -> float:
    """P(|t| < √freedom · tan(angle))."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
