"""From measured calls and steps to a profile's entries: means, medians, small fits.  Pure functions, no torch."""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.hardware import FamilyCost, FitStep, LibraryCost, OpCost
from taxbreak_fx.hardware_costs import Call

NEGATIVE = "negative_residual"
T = TypeVar("T", bound=Hashable)


class Row(NamedTuple):
    """One measured call of a step: microseconds; ``kernels`` and ``memops`` are None where it was not traced, and no
    whole numbers where like calls share what was counted."""

    call: Call
    ft_us: float
    ct_us: float | None = None
    kernels: float | None = None
    memops: float | None = None


class Glue(NamedTuple):
    """Python outside the dispatching calls: microseconds per dispatching call, module call and other function call."""

    site_us: float
    module_us: float
    function_us: float
    error: float


def op_costs(rows: Iterable[Row]) -> tuple[list[OpCost], dict[str, str]]:
    """One entry per target and leaf ops: its calls' mean without the dearest and the cheapest tenth of them.

    Also, for every entry left out, its name and the reason.  What noise made negative is no cost: an entry with a
    negative ``ft_us`` is left out, a negative ``ct_us`` is null.  ``kernels`` is null where calls launch different
    numbers of them: that hangs on sizes, which the points of the family's grid tell.
    """
    found: list[OpCost] = []
    left_out: dict[str, str] = {}
    for (target, ops), calls in _groups(((row.call.target, row.call.ops), row) for row in rows).items():
        last = calls[-1].call
        ft_us = _trimmed([row.ft_us for row in calls])
        library = [row.ct_us for row in calls if row.ct_us is not None]
        ct_us = _trimmed(library) if library else None
        if ft_us < 0:
            left_out[f"ops.{target}"] = NEGATIVE
            continue
        found.append(
            OpCost(
                target=target,
                ops=ops,
                family=last.family,
                library=last.library,
                tensors=round(statistics.median(row.call.tensors for row in calls)),
                ft_us=ft_us,
                ct_us=None if ct_us is None or ct_us < 0 else ct_us,
                kernels=_common([row.kernels for row in calls]),
                memops=_mean([row.memops for row in calls]),
                calls=len(calls),
            )
        )
    return sorted(found, key=lambda op: (op.family, op.target, op.ops)), left_out


def family_costs(ops: Iterable[OpCost]) -> list[FamilyCost]:
    """Median over the entries of a family, by number of tensors and over all: entries, not calls, since they stand in
    for ops that were not met."""
    ops = list(ops)
    keys = [(op.family, op.tensors) for op in ops] + [(op.family, None) for op in ops]
    groups = _groups(zip(keys, [*ops, *ops], strict=True))
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] is not None, item[0][1] or 0))
    return [
        FamilyCost(
            family=family,
            tensors=tensors,
            ft_us=statistics.median(op.ft_us for op in same),
            calls=sum(op.calls for op in same),
        )
        for (family, tensors), same in ordered
    ]


def library_costs(ops: Iterable[OpCost]) -> list[LibraryCost]:
    """Median over the entries that a vendor library works for, by library and family."""
    timed = [op for op in ops if op.ct_us is not None and op.library in VENDOR_LIBRARIES]
    groups = _groups(((op.library, op.family), op) for op in timed)
    return [
        LibraryCost(
            library=library,
            family=family,
            ct_us=statistics.median(op.ct_us for op in same if op.ct_us is not None),
            calls=sum(op.calls for op in same),
        )
        for (library, family), same in sorted(groups.items())
    ]


def glue_costs(steps: Sequence[FitStep]) -> Glue:
    """The non-negative costs per site, module call and function call that come nearest to the steps' glue, relatively.

    Raises ``ValueError`` without a step that has glue.
    """
    used = [step for step in steps if step.glue_us > 0]
    if not used:
        raise ValueError("no step has Python outside its calls")
    table = [[step.sites, step.modules, step.functions] for step in used]
    weights = [1 / step.glue_us for step in used]
    found = non_negative(table, [step.glue_us for step in used], weights)
    fitted = [sum(cost * count for cost, count in zip(found, row, strict=True)) for row in table]
    error = statistics.fmean(abs(us / step.glue_us - 1) for us, step in zip(fitted, used, strict=True))
    return Glue(found[0], found[1], found[2], error)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Non-negative (fixed, slope) of a line through (x, y): the median slope of all pairs, and the median of what is
    left (Theil and Sen), which a disturbed point does not move; where one of them is negative, least squares.

    Raises ``ValueError`` for one x only, and where y does not grow with x.
    """
    pairs = [(a, b) for a, b in itertools.combinations(points, 2) if a[0] != b[0]]
    if not pairs:
        raise ValueError("a fixed part and a slope need measurements at two sizes or more")
    slope = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)
    fixed = statistics.median(y - slope * x for x, y in points)
    if slope <= 0 or fixed < 0:
        fixed, slope = non_negative([[1.0, x] for x, _ in points], [y for _, y in points], [1.0] * len(points))
    if slope <= 0:
        raise ValueError("no growth with the number was seen above the noise")
    return fixed, slope


def non_negative(table: Sequence[Sequence[float]], values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted least squares with no negative coefficient, exact for few columns: the best of all subsets of columns
    whose plain solution is non-negative; the others are 0."""
    scale = np.asarray(weights, dtype=float)
    left, right = np.asarray(table, dtype=float) * scale[:, None], np.asarray(values, dtype=float) * scale
    width = left.shape[1]
    best, least = [0.0] * width, float(right @ right)
    for size in range(1, width + 1):
        for chosen in itertools.combinations(range(width), size):
            solution = np.linalg.lstsq(left[:, chosen], right, rcond=None)[0]
            rest = right - left[:, chosen] @ solution
            if (solution >= 0).all() and float(rest @ rest) < least:
                least, best = float(rest @ rest), [0.0] * width
                for column, value in zip(chosen, solution, strict=True):
                    best[column] = float(value)
    return best


def _trimmed(values: Sequence[float]) -> float:
    """Mean without the lowest and highest tenth: a burst on the host hits single calls."""
    ordered, cut = sorted(values), round(len(values) / 10)
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def _common(values: Sequence[float | None]) -> float | None:
    """The mean of what is known, where all of it is the same."""
    known = [value for value in values if value is not None]
    return _mean(known) if known and max(known) - min(known) < 0.01 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


V = TypeVar("V")


def _groups(pairs: Iterable[tuple[T, V]]) -> dict[T, list[V]]:
    groups: dict[T, list[V]] = collections.defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups
