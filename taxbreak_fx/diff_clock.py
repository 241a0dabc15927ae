"""How fast the head's machine was against the base's, and how surely that is known (docs/diff.md, "Noise").

Two reviews are two processes, and a host drifts by more than most changes are worth.  What both did alike is the clock:
eager, timed in pairs with every other variant, where the base's and the head's eager are the same program; else the
rows of the variant itself that call, launch and run the same.  Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taxbreak_fx.diff_match import Pair
from taxbreak_fx.diff_types import Clock
from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.record import Interval
from taxbreak_fx.variant_record import Node

EAGER = "eager"
CONFIDENCE = 0.999  # as stats.CONFIDENCE: many metrics of many variants are looked at in one diff
# Paired ratios of one variant differed between processes by up to 12 % on H200s (reviews of six workloads, 2026-11-23)
# and by up to 17 % on a shared 2-core CPU beyond what their intervals say: where code and data lie is drawn once per
# process.
PROCESS_SPREAD = 1.2
# T_host of eager went from 6.8 to 11.6 ms within twenty timings of one process (benchmarks/results/repeatability.json):
# what a review that timed eager once cannot know of itself.
DRIFT = 1.75
FEWEST_ROWS = 5  # a median over fewer says little
HOST_BOUND = 0.9  # T_issue ÷ T_wall of eager from which its wall time is a clock of the host


class _Paired(NamedTuple):
    """Eager's T_wall while a variant was timed, and how far its logarithm may be off."""

    eager_us: float
    reach: float


def clocks(base: Review, head: Review, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Clock]:
    """The clock of every variant that is ok in both; ``pairs`` holds the matched rows of each."""
    return {name: _clock(name, base, head, pairs) for name in pairs}


def root(review: Review, variant: Variant) -> Variant:
    """The variant that a predicted one was made from, in the end; itself where it was not made from another."""
    known = {other.name: other for other in review.variants}
    while variant.prediction is not None and variant.prediction.base in known:
        variant = known[variant.prediction.base]
    return variant


def _clock(name: str, base: Review, head: Review, pairs: Mapping[str, Sequence[Pair]]) -> Clock:
    a, b = root(base, base.variant(name)), root(head, head.variant(name))
    if a.name != b.name or (a.origin == "predicted") != (b.origin == "predicted"):
        how = [f"{one.origin} ({one.name})" for one in (a, b)]
        return Clock(
            variant=name, host=None, source=f"base {how[0]}, head {how[1]}: their times have nothing in common"
        )
    if a.origin == "predicted":
        if _costs(base) != _costs(head):
            return Clock(variant=name, host=None, source="predicted from different hardware profiles")
        return Clock(variant=name, host=1.0, source="both predicted from the same hardware profile", exact=True)
    own = _paired(base, a), _paired(head, b)
    if a.name != EAGER and own[0] and own[1] and _eager_is_clock(base, head, pairs.get(EAGER, ())):
        spread = math.log(PROCESS_SPREAD) + own[0].reach + own[1].reach
        ratio = own[1].eager_us / own[0].eager_us
        return Clock(variant=name, host=ratio, spread=math.exp(spread), source="paired eager, which runs the same")
    return _row_clock(name, base, head, a.name, pairs)


def _row_clock(name: str, base: Review, head: Review, row_name: str, pairs: Mapping[str, Sequence[Pair]]) -> Clock:
    """By the rows that are the same: the variant's own, else eager's, which were timed at another moment."""
    drift = math.log(PROCESS_SPREAD) + math.log(unsteadiness(base)) + math.log(unsteadiness(head))
    drift += _scatter(base, row_name) + _scatter(head, row_name)
    cpu = base.step.device == "cpu"
    for owner in dict.fromkeys((row_name, EAGER)):
        ratios = _ratios(pairs.get(owner, ()), cpu)
        if len(ratios) >= FEWEST_ROWS:
            source = f"{len(ratios)} ops of {owner} that run the same"
            middle = _middle(ratios)
            # Rows of a quiet review agree with one another, and with their sum, to a few per cent; where they do not,
            # their middle is no better.
            drift += _middle([(abs(ratio - middle), weight) for ratio, weight in ratios])
            whole = math.fsum(weight * math.exp(ratio) for ratio, weight in ratios) / math.fsum(w for _, w in ratios)
            drift += abs(math.log(whole) - middle)
            return Clock(variant=name, host=math.exp(middle), spread=math.exp(drift), source=source)
    return Clock(variant=name, host=None, source=f"fewer than {FEWEST_ROWS} timed ops run the same in base and head")


def _costs(review: Review) -> tuple[object, ...]:
    """What tells profiles apart: the machine that was calibrated, and when; and in the note, how it was scaled."""
    machine = review.machine
    titles = [note for note in review.notes if "costs of profile" in note]
    return machine.device, machine.date, machine.calibration, titles


def unsteadiness(review: Review) -> float:
    """Largest ÷ smallest T_wall of eager over the timings of the review, in which it is the same program; at least 1.

    ``DRIFT`` where it was timed once.
    """
    found = [paired.eager_us for v in review.variants if (paired := _paired(review, v)) is not None]
    eager = _ok(review, EAGER)
    if eager is not None and eager.t_wall_us is not None:
        found.append(eager.t_wall_us.median)
    return max(found) / min(found) if len(found) > 1 and min(found) > 0 else DRIFT


def host_us(node: Node, cpu: bool) -> float | None:
    """Host time of a row: ΔFT + ΔCT, and on the CPU device its device time, which is the host's too."""
    if node.ft_us is None:
        return None
    return node.ft_us + (node.ct_us or 0.0) + ((node.device_us or 0.0) if cpu else 0.0)


def _ok(review: Review, name: str) -> Variant | None:
    return next((v for v in review.variants if v.name == name and v.status == "ok"), None)


def _paired(review: Review, variant: Variant) -> _Paired | None:
    if variant.origin == "predicted" or variant.t_wall_us is None:
        return None
    for comparison in review.comparisons:
        if (comparison.base, comparison.variant) == (EAGER, variant.name) and comparison.wall_ratio is not None:
            return _Paired(variant.t_wall_us.median / comparison.wall_ratio.median, _reach(comparison))
    return None


def _reach(comparison: Comparison) -> float:
    """Half-width in logarithms of the paired ratio's interval, at ``CONFIDENCE``."""
    assert comparison.wall_ratio is not None
    normal = statistics.NormalDist()
    level = comparison.ratio_confidence
    wider = normal.inv_cdf((1 + CONFIDENCE) / 2) / normal.inv_cdf((1 + level) / 2) if 0 < level < 1 else 1.0
    return _half(comparison.wall_ratio) * max(1.0, wider)


def _half(interval: Interval) -> float:
    if interval.low <= 0:
        return math.log(DRIFT)
    return max(math.log(interval.high / interval.median), math.log(interval.median / interval.low))


def _scatter(review: Review, name: str) -> float:
    """Half-width in logarithms of the variant's T_host."""
    variant = _ok(review, name)
    return _half(variant.t_host_us) if variant is not None and variant.t_host_us is not None else 0.0


def _eager_is_clock(base: Review, head: Review, pairs: Sequence[Pair]) -> bool:
    """Eager ran the same program in both, and waited for its host, not for its device."""
    a, b = _ok(base, EAGER), _ok(head, EAGER)
    if a is None or b is None or not pairs or not all(pair.same for pair in pairs):
        return False
    return (a.launches, a.kernels) == (b.launches, b.kernels) and _host_bound(a) and _host_bound(b)


def _host_bound(eager: Variant) -> bool:
    if eager.issue_us is None or eager.t_wall_us is None:
        return False
    return eager.issue_us >= HOST_BOUND * eager.t_wall_us.median


def _ratios(pairs: Sequence[Pair], cpu: bool) -> list[tuple[float, float]]:
    """Logarithm of head ÷ base, and the base's time, of every row that runs the same and was timed in both."""
    found = []
    for pair in pairs:
        if pair.base is not None and pair.head is not None and pair.same and not pair.by_place:
            a, b = host_us(pair.base, cpu), host_us(pair.head, cpu)
            if a is not None and b is not None and a > 0 and b > 0:
                found.append((math.log(b / a), a))
    return found


def _middle(weighted: Sequence[tuple[float, float]]) -> float:
    """Weighted median: a few ops that did become slower do not move it."""
    half = math.fsum(weight for _, weight in weighted) / 2
    passed = 0.0
    for value, weight in sorted(weighted):
        passed += weight
        if passed >= half:
            return value
    raise ValueError("a median of nothing")
