"""A step over several batches: what each takes, and between which it turns from waiting for the host to the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from taxbreak_fx import __version__
from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review, StepInfo, Variant
from taxbreak_fx.record import Measured, Record
from taxbreak_fx.whatif_step import final
from taxbreak_fx.whatif_variant import AND

SWEEP_VERSION = "1.0.0"
Bound = Literal["host", "device"]


class SweepRow(Measured, frozen=True, kw_only=True):
    """A variant, with all its changes but the batch, at one batch; times in µs per step, counts per step.

    ``bound``: "device" where T_DeviceActive ≥ T_Orchestration (HDBI ≥ 0.5), else "host".
    """

    MEASUREMENTS = (
        "t_wall_us", "t_host_us", "device_active_us", "orchestration_us", "hdbi", "bound", "launches", "kernels",
    )  # fmt: skip

    variant: str
    batch: int
    t_wall_us: float | None
    t_host_us: float | None
    device_active_us: float | None
    orchestration_us: float | None
    hdbi: float | None
    bound: Bound | None
    launches: int | None
    kernels: int | None


class Turn(Record, frozen=True, kw_only=True):
    """Above ``batch`` and at ``next_batch`` at the latest, ``variant`` is bound by ``to`` instead."""

    variant: str
    batch: int
    next_batch: int
    to: Bound


class Sweep(Record, frozen=True, kw_only=True):
    """All batches of one command; ``step`` is as reviewed.

    ``turns``: in ascending order per variant; one that has none is bound by the same side throughout.
    """

    schema_version: str = SWEEP_VERSION
    tool_version: str = __version__
    model: str
    step: StepInfo
    device: str
    rows: list[SweepRow]
    turns: list[Turn]
    notes: list[str]


def batches_of(text: str) -> tuple[int, ...]:
    """``"1,2,4"`` in ascending order.  Raises ``UsageError`` for what are no batches."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch must be a whole number of at least 1, or several between commas; got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def sweep(review: Review, found: Mapping[int, Review], bases: Sequence[str]) -> Sweep:
    """The table of ``found``: by batch, what ``step_whatif`` made of ``review``."""
    rows = {base: [_row(final(found[batch], base), batch) for batch in sorted(found)] for base in bases}
    return Sweep(
        model=review.model,
        step=review.step,
        device=review.machine.device,
        rows=[row for own in rows.values() for row in own],
        turns=[turn for own in rows.values() for turn in turns(own)],
        notes=list(dict.fromkeys(note for batch in sorted(found) for note in found[batch].notes)),
    )


def _row(variant: Variant, batch: int) -> SweepRow:
    own = variant.breakdown
    device, total = variant.device_active_us, None if own is None else own.orchestration_us
    bound = None if device is None or total is None else "device" if device >= total else "host"
    fields: dict[str, Any] = {
        "t_wall_us": None if variant.t_wall_us is None else variant.t_wall_us.median,
        "t_host_us": None if variant.t_host_us is None else variant.t_host_us.median,
        "device_active_us": device,
        "orchestration_us": total,
        "hdbi": None if own is None else own.hdbi,
        "bound": bound,
        "launches": variant.launches,
        "kernels": variant.kernels,
    }
    reasons = variant.unmeasured | ({} if own is None else own.unmeasured)
    whole = variant.reason or reasons.get("breakdown") or reasons.get("orchestration_us") or "no device time"
    return SweepRow(
        variant=AND.join(part for part in variant.name.split(AND) if part != f"batch {batch}"),
        batch=batch,
        unmeasured={name: reasons.get(name, whole) for name, value in fields.items() if value is None},
        **fields,
    )


def turns(rows: Iterable[SweepRow]) -> list[Turn]:
    """Where the side that binds one variant changes, between neighbours of which both are known; by rising batch."""
    known = [row for row in rows if row.bound is not None]
    return [
        Turn(variant=one.variant, batch=one.batch, next_batch=other.batch, to=other.bound)
        for one, other in itertools.pairwise(known)
        if one.bound != other.bound and other.bound is not None
    ]


def encode(made: Sweep) -> bytes:
    """The JSON document."""
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"
