"""A predicted variant beside measured ones: against the step it was made from, eager, and the variant that ran so."""

from __future__ import annotations

from typing import Any

import msgspec

from taxbreak_fx.compare import LEAST_EFFECT, verdict_of
from taxbreak_fx.model import Comparison, Removed, Review, Variant
from taxbreak_fx.record import Interval

PREDICTED = "predicted: a simulation does not tell"


def checked(review: Review, made: Variant, base: Variant, real: Variant) -> Variant:
    """``made`` beside the variant that ran so, each against eager where both were paired with it: machines drift."""
    assert made.prediction is not None and made.t_wall_us is not None and real.t_wall_us is not None
    own, other = _paired(review, base.name), _paired(review, real.name)
    if own is not None and other is not None:
        error = own.median * (1 + made.prediction.wall_change) / other.median - 1
    else:
        error = made.t_wall_us.median / real.t_wall_us.median - 1
    return msgspec.structs.replace(
        made, prediction=msgspec.structs.replace(made.prediction, measured_as=real.name, error=error)
    )


def _paired(review: Review, name: str) -> Interval | None:
    """The measured wall ratio of a variant to eager; None where there is none."""
    if name == "eager":
        return Interval(median=1.0, low=1.0, high=1.0, samples=0)
    found = _comparison(review, "eager", name)
    return None if found is None else found.wall_ratio


def _comparison(review: Review, base: str, name: str) -> Comparison | None:
    return next((c for c in review.comparisons if (c.base, c.variant) == (base, name)), None)


def compared(review: Review, against: Variant, base: Variant, made: Variant) -> Comparison:
    """``made`` against the variant it was made from, or (``against``: eager) through the measured comparison of both.

    The interval of the ratio is as wide as the simulation's error on the base.
    """
    assert made.prediction is not None and against.t_wall_us is not None and made.t_wall_us is not None
    change, error = 1 + made.prediction.wall_change, abs(made.prediction.base_error)
    way = Interval(median=1.0, low=1.0, high=1.0, samples=0)
    through = None
    if against.name != base.name:
        through = _comparison(review, against.name, base.name)
        assert base.t_wall_us is not None
        absolute = base.t_wall_us.median / against.t_wall_us.median
        way = (through.wall_ratio if through is not None else None) or Interval(
            median=absolute, low=absolute, high=absolute, samples=0
        )
    ratio = Interval(
        median=way.median * change, low=way.low * change * (1 - error), high=way.high * change * (1 + error), samples=0
    )
    before, after = against.breakdown, made.breakdown
    fields: dict[str, Any] = {
        "hdbi_before": before.hdbi if before is not None else None,
        "hdbi_after": after.hdbi if after is not None else None,
        "launches_before": against.launches,
        "launches_after": made.launches,
        "kernels_before": against.kernels,
        "kernels_after": made.kernels,
        "breakeven_steps": None,
    }
    return Comparison(
        base=against.name,
        variant=made.name,
        origin="predicted",
        removed=_removed(against, base, made, through, against.t_wall_us.median * (1 - ratio.median)),
        wall_ratio=ratio,
        ratio_confidence=0.0,
        verdict=f"predicted: {verdict_of(ratio, LEAST_EFFECT)}",
        unmeasured={name: PREDICTED for name, value in fields.items() if value is None},
        **fields,
    )


def _removed(against: Variant, base: Variant, made: Variant, through: Comparison | None, wall_us: float) -> Removed:
    """What was measured to be removed up to the base, which is corrected for drift, and what the change removes."""
    values: dict[str, float | None] = {"wall_us": wall_us}
    for name in ("ft_us", "ct_us", "kt_us", "device_us"):
        own, new = _term(base, name), _term(made, name)
        first: float | None = 0.0
        if against.name != base.name:
            old = _term(against, name)
            first = None if old is None or own is None else old - own
            if through is not None:
                first = getattr(through.removed, name)
        values[name] = None if own is None or new is None or first is None else first + own - new
    noise = {} if through is None else {n: us for n, us in through.removed.noise_us.items() if values[n] is not None}
    return Removed(
        noise_us=noise, unmeasured={name: PREDICTED for name, value in values.items() if value is None}, **values
    )


def _term(variant: Variant, name: str) -> float | None:
    if name == "device_us":
        return variant.device_active_us
    return None if variant.breakdown is None else getattr(variant.breakdown, name)
