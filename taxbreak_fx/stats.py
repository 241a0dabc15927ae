"""Medians with bootstrap intervals, and paired ratios of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taxbreak_fx.model import Interval, Percentiles

RESAMPLES = 1_000
_SEED = 20  # intervals of the same samples are the same interval


def interval(samples: Sequence[float]) -> Interval:
    """Median of ``samples`` with its 95 % percentile-bootstrap interval, in the samples' unit."""
    return _bootstrap(np.asarray(samples, dtype=float))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Median of the pairwise ratios of two equally long series, with its bootstrap interval."""
    return _bootstrap(np.asarray(numerator, dtype=float) / np.asarray(denominator, dtype=float))


def ratio_of_ratios(first: Sequence[float], second: Sequence[float]) -> Interval:
    """``first`` ÷ ``second`` where each is a series of paired ratios to a common base; resampled independently."""
    generator = np.random.default_rng(_SEED)
    medians = [_medians(np.asarray(series, dtype=float), generator) for series in (first, second)]
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    median = float(np.median(first) / np.median(second))
    return Interval(
        median=median, low=min(float(low), median), high=max(float(high), median), samples=min(len(first), len(second))
    )


def percentiles(samples: Sequence[float]) -> Percentiles:
    """p5, p50 and p95 of ``samples``, in the samples' unit."""
    p5, p50, p95 = (float(value) for value in np.percentile(np.asarray(samples, dtype=float), [5, 50, 95]))
    return Percentiles(p5=p5, p50=p50, p95=p95, samples=len(samples))


def _medians(samples: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    draws = generator.integers(0, len(samples), size=(RESAMPLES, len(samples)))
    medians: np.ndarray = np.median(samples[draws], axis=1)
    return medians


def _bootstrap(samples: np.ndarray) -> Interval:
    if samples.size == 0:
        raise ValueError("no samples")
    low, high = np.percentile(_medians(samples, np.random.default_rng(_SEED)), [2.5, 97.5])
    median = float(np.median(samples))
    return Interval(median=median, low=min(float(low), median), high=max(float(high), median), samples=samples.size)
