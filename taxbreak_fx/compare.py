"""Variant against variant: what each removed or added, per term (method.md, "Variants and attribution")."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from taxbreak_fx.model import Comparison, Removed, Variant
from taxbreak_fx.record import Interval
from taxbreak_fx.recording import Timing
from taxbreak_fx.stats import CONFIDENCE, ratio, ratio_of_ratios

# A convention, not a measurement: where code and data happen to lie in memory is the same in all pairs of a process, so
# no interval shows what it does; and nobody acts on less than this.
LEAST_EFFECT = 0.01
TRACE_SPREAD = 1.02  # the same kernels traced in eager and in dynamo differed by up to 1.8 % (H200, 2026-11-23)
# Two timing stages of one process on a shared 2-core CPU told ΔFT and device time apart alike to 18 % of T_host (20 A/A
# reviews of gpt2-tiny, benchmarks/repeatability.py): replays run at another moment than the step they stand for.
REPLAY_SPREAD = 0.2
UNCHANGED = "no measurable change"
LADDER = (("eager", "dynamo"), ("dynamo", "inductor"), ("inductor", "reduce-overhead"), ("eager", "eager-graph"))


def compare_all(variants: Sequence[Variant], timings: Mapping[str, Timing], base: str = "eager") -> list[Comparison]:
    """Every measured variant against ``base``, then the steps of the ladder that are not among those."""
    ok = {variant.name: variant for variant in variants if variant.status == "ok"}
    pairs = [(base, name) for name in ok if name != base and base in ok]
    pairs += [(a, b) for a, b in LADDER if a in ok and b in ok and (a, b) not in pairs]
    return [compare(ok[a], ok[b], timings) for a, b in pairs]


def compare(base: Variant, variant: Variant, timings: Mapping[str, Timing]) -> Comparison:
    """``variant`` against ``base``.

    The wall ratio rests on pairs with the common reference, eager, in one process; a change is claimed when its
    interval leaves out 1 and it is larger than ``least_effect``.  The host terms of both are first brought to one clock
    by ``host_drift``: variants are measured minutes apart, and machines drift meanwhile.
    """
    wall = wall_ratio(base.name, variant.name, timings)
    verdict = verdict_of(wall, least_effect(timings))
    before, after = base.breakdown, variant.breakdown
    fields: dict[str, Any] = {
        "wall_ratio": wall,
        "hdbi_before": before.hdbi if before else None,
        "hdbi_after": after.hdbi if after else None,
        "launches_before": base.launches,
        "launches_after": variant.launches,
        "kernels_before": base.kernels,
        "kernels_after": variant.kernels,
    }
    reasons = {name: _why(name, base, variant) for name, value in fields.items() if value is None}
    fields["breakeven_steps"], why = _breakeven(base, variant, wall, verdict)
    if why:
        reasons["breakeven_steps"] = why
    drift = host_drift(timings[base.name]) / host_drift(timings[variant.name])
    return Comparison(
        base=base.name,
        variant=variant.name,
        removed=_removed(base, variant, wall, drift, timings),
        verdict=verdict,
        worse=_worse(base, variant, wall, verdict),
        ratio_confidence=CONFIDENCE,
        unmeasured=reasons,
        **fields,
    )


def host_drift(timing: Timing) -> float:
    """Median T_host of the eager steps paired with this variant, in microseconds: how slow the host was meanwhile."""
    return statistics.median(timing.base_host_us)


def wall_ratio(base: str, variant: str, timings: Mapping[str, Timing]) -> Interval:
    """T_wall of ``variant`` ÷ T_wall of ``base``: paired directly when the base is eager, else through eager."""
    own, other = timings[variant], timings[base]
    if base == "eager" or other.base_wall_us == other.wall_us:
        return ratio(own.wall_us, own.base_wall_us)
    return ratio_of_ratios(_divided(own.wall_us, own.base_wall_us), _divided(other.wall_us, other.base_wall_us))


def wall_at_speed_of(base: Variant, variant: Variant, comparisons: Sequence[Comparison]) -> float:
    """The variant's T_wall, in microseconds, had its host been as fast as when ``base`` was measured.

    For putting variants in order: they are timed minutes apart, and hosts drift meanwhile.  By absolute times a variant
    that waits for its host gains or loses by that; by its paired ratio to the base, one that waits for its device does,
    since a slow host lengthens the base alone.  So host time alone is scaled, by what the base itself took beside the
    variant; never below the device's time.  Without pairs, the T_wall as measured.
    Raises ``ValueError`` for a variant without T_wall.
    """
    if variant.t_wall_us is None:
        raise ValueError(f"{variant.name} has no T_wall")
    wall = variant.t_wall_us.median
    ratio = next((c.wall_ratio for c in comparisons if (c.base, c.variant) == (base.name, variant.name)), None)
    if variant.name == base.name or ratio is None or base.t_wall_us is None or variant.t_host_us is None:
        return wall
    drift = wall / ratio.median / base.t_wall_us.median
    host = min(wall, variant.t_host_us.median)
    scaled = wall - host + host / drift
    if variant.device_active_us is None or variant.kernels is None:  # on the CPU device its work is the host's own
        return scaled
    return max(scaled, min(wall, variant.device_active_us))


def host_noise(base: str, variant: str, timings: Mapping[str, Timing]) -> float:
    """Half-width of the interval of T_host of ``variant`` ÷ ``base``, each against its own pairs with eager.

    Both series count, also where the base is eager: its own T_host was measured at another time than the variant's.
    """
    own, other = timings[variant], timings[base]
    found = ratio_of_ratios(_divided(own.host_us, own.base_host_us), _divided(other.host_us, other.base_host_us))
    return (found.high - found.low) / 2


def least_effect(timings: Mapping[str, Timing]) -> float:
    """The smallest relative change that is claimed: as large as eager against itself showed, and ``LEAST_EFFECT``.

    Eager is timed in pairs with itself like any variant: what its ratio is off 1 by, no other ratio can be sure of.
    """
    eager = timings.get("eager")
    if eager is None or eager.base_wall_us == eager.wall_us:
        return LEAST_EFFECT
    return max(LEAST_EFFECT, abs(ratio(eager.wall_us, eager.base_wall_us).median - 1.0))


def verdict_of(wall: Interval, least: float) -> str:
    """``faster``, ``slower`` or ``no measurable change``: the interval holds 1, or the change is at most ``least``."""
    if wall.low <= 1.0 <= wall.high or abs(wall.median - 1.0) <= least:
        return UNCHANGED
    return "faster" if wall.high < 1.0 else "slower"


def _divided(times: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(times, base, strict=True)]


def _removed(base: Variant, variant: Variant, wall: Interval, drift: float, timings: Mapping[str, Timing]) -> Removed:
    """Base minus variant per term, with the variant's host times multiplied by ``drift``, and the noise of each."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in ("ft_us", "ct_us", "kt_us"):
        a = getattr(base.breakdown, name) if base.breakdown else None
        b = getattr(variant.breakdown, name) if variant.breakdown else None
        # kt_us is traced against the device's clock, and calibrated once for all variants: it does not drift with them.
        scale = 1.0 if name == "kt_us" else drift
        values[name] = None if a is None or b is None else a - b * scale
        if values[name] is None:
            lacking = base if a is None else variant
            why = lacking.breakdown.unmeasured[name] if lacking.breakdown else lacking.reason
            reasons[name] = f"{lacking.name}: {why}"
    a, b = base.device_active_us, variant.device_active_us
    # With no launches the device is the host itself, and drifts with it.
    values["device_us"] = None if a is None or b is None else a - b * (drift if variant.launches is None else 1.0)
    if values["device_us"] is None:
        lacking = base if a is None else variant
        reasons["device_us"] = f"{lacking.name}: {lacking.unmeasured.get('device_active_us', 'not measured')}"
    assert base.t_wall_us is not None  # every "ok" variant has its wall time
    values["wall_us"] = base.t_wall_us.median * (1.0 - wall.median)
    noise = _term_noise(base, variant, wall, host_noise(base.name, variant.name, timings))
    return Removed(unmeasured=reasons, noise_us={name: noise[name] for name in noise if name not in reasons}, **values)


def _term_noise(base: Variant, variant: Variant, wall: Interval, host: float) -> dict[str, float]:
    """Half-width in microseconds within which a removed term is no measurable change.

    A term is T_host less others, so T_host's own noise bounds it; one that isolated replay told apart (ΔCT and what is
    left beside it; on the CPU device the device time too) is no surer than replays are.  Traced device times repeat to
    ``TRACE_SPREAD``.  ΔKT is a count times one calibrated floor: equal where the counts are, so it has no entry.
    """
    assert base.t_wall_us is not None and base.t_host_us is not None  # every "ok" variant has both
    traced = variant.launches is not None
    replayed = max(_library_us(base), _library_us(variant)) if traced else base.t_host_us.median
    split = max(max(host, LEAST_EFFECT) * base.t_host_us.median, REPLAY_SPREAD * replayed)
    reach = max((wall.high - wall.low) / 2, LEAST_EFFECT)
    noise = {"wall_us": reach * base.t_wall_us.median, "ft_us": split, "ct_us": split}
    if base.device_active_us is not None:
        noise["device_us"] = (TRACE_SPREAD - 1.0) * base.device_active_us if traced else split
    return noise


def _library_us(variant: Variant) -> float:
    return (variant.breakdown.ct_us if variant.breakdown else None) or 0.0


def _why(name: str, base: Variant, variant: Variant) -> str:
    lacking = base if name.endswith("before") else variant
    field = name.rsplit("_", 1)[0]
    if field == "hdbi":
        return lacking.breakdown.unmeasured.get("hdbi", "not measured") if lacking.breakdown else "no breakdown"
    return lacking.unmeasured.get(field, "not measured")


def _breakeven(base: Variant, variant: Variant, wall: Interval, verdict: str) -> tuple[float | None, str]:
    """Build time ÷ wall time saved per step; null where nothing measurable is saved."""
    if variant.compile_s is None:
        return None, variant.unmeasured.get("compile_s", "build time not measured")
    if verdict != "faster":
        return None, "never: the variant is not measurably faster"
    assert base.t_wall_us is not None
    return variant.compile_s * 1e6 / (base.t_wall_us.median * (1.0 - wall.median)), ""


def _worse(base: Variant, variant: Variant, wall: Interval, verdict: str) -> list[str]:
    """What the variant made worse, each in one sentence."""
    found = []
    if verdict == "slower":
        found.append(f"wall time is {wall.median:.2f} times the base's")
    if base.kernels is not None and variant.kernels is not None and variant.kernels > base.kernels:
        found.append(f"more kernels: {base.kernels} → {variant.kernels}")
    a, b = base.device_active_us, variant.device_active_us
    # On the CPU device, device time is itself a remainder of noisy host times: no ground for a claim.
    if a is not None and b is not None and variant.launches is not None and b > a * TRACE_SPREAD:
        found.append(f"more device time: {a:,.0f} → {b:,.0f} µs")
    if base.memops is not None and variant.memops is not None and variant.memops > base.memops:
        found.append(f"more device copies and fills: {base.memops} → {variant.memops}")
    if variant.outputs_equal is False:
        found.append("outputs are not equal to the reference")
    found += [note for note in variant.notes if note.startswith(("nothing was graphed", "nothing was compiled"))]
    return found
