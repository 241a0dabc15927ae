"""What the claims read from a review's variant: terms in milliseconds, counts, HDBI, idle share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.paper.cells import Cell, Found, Store
from benchmarks.paper.claim import NOT_RUN, REASONS, Row, alone, beside, conditions, lacking
from taxbreak_fx.model import Comparison, Review, Variant

Getter = Callable[[Variant], float | None]
GRAPHED = ("reduce-overhead", "cudagraphs", "eager-graph")
DRIFT = 1.15  # a convention: a host that is further off than this makes a graphed variant's ratio useless


def wall_ms(variant: Variant) -> float | None:
    """T_wall."""
    return None if variant.t_wall_us is None else variant.t_wall_us.median / 1e3


def device_ms(variant: Variant) -> float | None:
    """T_DeviceActive."""
    return None if variant.device_active_us is None else variant.device_active_us / 1e3


def orchestration_ms(variant: Variant) -> float | None:
    """T_Orchestration."""
    terms = variant.breakdown
    return None if terms is None or terms.orchestration_us is None else terms.orchestration_us / 1e3


def hdbi(variant: Variant) -> float | None:
    """HDBI on the traced floor."""
    return variant.breakdown.hdbi if variant.breakdown else None


def kernels(variant: Variant) -> float | None:
    """Kernels per step: for a decode step, per output token of each sequence of the batch."""
    return variant.kernels


def idle_share(variant: Variant) -> float | None:
    """1 − T_DeviceActive ÷ T_wall."""
    wall, device = wall_ms(variant), device_ms(variant)
    return None if wall is None or device is None else 1.0 - device / wall


def eager_then(review: Review, found: Comparison) -> float | None:
    """Eager's T_wall in the pairs with a variant ÷ its own median: how much slower the host was meanwhile.

    The pairs themselves are not in a review: it is the variant's median ÷ its paired ratio.
    """
    base, variant = review.variant("eager").t_wall_us, review.variant(found.variant).t_wall_us
    if base is None or variant is None or found.wall_ratio is None:
        return None
    return variant.median / found.wall_ratio.median / base.median


def drifted(variant: str, then: float | None) -> bool:
    """Whether the paired wall ratio of a graphed variant says more of the host than of the variant: eager's time moves
    with the host, a replayed graph's does not."""
    return variant in GRAPHED and then is not None and not 1 / DRIFT <= then <= DRIFT


def facts(variant: Variant) -> dict[str, Any]:
    """The terms of a variant, milliseconds but for counts, HDBI and the idle share."""
    terms = variant.breakdown

    def ms(us: float | None) -> float | None:
        return None if us is None else us / 1e3

    return {
        "wall_ms": wall_ms(variant),
        "ft_ms": ms(terms.ft_us if terms else None),
        "ct_ms": ms(terms.ct_us if terms else None),
        "kt_ms": ms(terms.kt_us if terms else None),
        "orchestration_ms": orchestration_ms(variant),
        "device_ms": device_ms(variant),
        "hdbi": hdbi(variant),
        "gpu_idle": idle_share(variant),
        "kernels": variant.kernels,
        "launches": variant.launches,
    }


def why_null(review: Review, variant: Variant, get: Getter) -> str:
    """Why ``get`` found nothing in a measured variant."""
    terms = variant.breakdown
    reasons = {**variant.unmeasured, **(terms.unmeasured if terms else {})}
    return "; ".join(dict.fromkeys(reasons.values())) or f"{get.__name__} is null"


def row(
    store: Store, what: str, cell: Cell, figure: str | None, get: Getter, unit: str, cause: str = "unexplained",
    other: str | None = None,
) -> Row:  # fmt: skip
    """The row of one number of a cell's eager step, beside a published figure or alone."""
    found = store.variant(cell)
    if isinstance(found, str):
        return lacking(what, figure, found, unit)
    review, variant = found
    ours = get(variant)
    if ours is None:
        return lacking(what, figure, why_null(review, variant, get), unit)
    if figure is None:
        return alone(what, ours, unit, conditions(review), **facts(variant))
    made = beside(what, figure, ours, conditions(review), cause, other)
    return msgspec.structs.replace(made, facts=facts(variant))


def no_timeline(found: Found) -> str:
    """Why a cell's review cannot be simulated."""
    if found.review is None:
        return found.reason or NOT_RUN
    return REASONS["not kept"]
