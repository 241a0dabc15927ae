"""A variant whose timeline was changed: each of its numbers × simulated(changed) ÷ simulated(as it is)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.decompose import delta_kt, hdbi, no_hdbi, orchestration
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import Interval, Record
from taxbreak_fx.timeline import Timeline, Work, simulate
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import Breakdown, Exposed, KtSource, Prediction
from taxbreak_fx.whatif_compare import PREDICTED
from taxbreak_fx.whatif_timeline import sped_up

AND = " + "  # between a variant's name and what was changed


class Changed(NamedTuple):
    """A changed step: ``labels`` of what was done to it, and notes on what that rests on."""

    timeline: Timeline
    labels: list[str]
    notes: list[str]


class Facts(Record, frozen=True, kw_only=True):
    """What no simulation yields of a changed step: its counts, the parts of ΔFT (in whatever unit: they are scaled onto
    it), and where its terms come from."""

    launches: int | None
    graph_launches: int | None
    kernels: int | None
    memops: int | None
    library_calls: dict[str, int] | None
    ft_parts: dict[str, float]
    ct_source: str
    kt_source: KtSource | None


class Sums(NamedTuple):
    """Host time of a step by term, ΔKT, and the sum of its device work; microseconds."""

    ft: float
    ct: float
    launch: float
    kt: float
    device: float


def changed_variant(
    review: Review,
    base: Variant,
    timeline: Timeline,
    changed: Changed,
    facts: Facts,
    like: Exposed,
    base_error: float,
    speed: float = 1.0,
    sums: tuple[Sums, Sums] | None = None,
) -> Variant:
    """``base`` of ``review``, whose step is ``timeline``, as ``changed``; ``speed``: of its host, which was 1 before.

    T_wall and T_host: measured × simulated ÷ simulated.  ΔFT, ΔCT, ΔKT, T_DeviceActive, T_issue and launch time: each
    by the quotient of its own sums, before and after: ``sums``, else those of the timelines.
    ``like``: an exposed cost with the same floors.  ``base_error`` goes into the
    prediction as it is.  ``base`` has T_wall and T_host.
    """
    assert base.t_wall_us is not None and base.t_host_us is not None
    before, after = simulate(timeline), simulate(changed.timeline)
    sums = sums or (_sums(review, timeline, 1.0), _sums(review, changed.timeline, speed))
    hosts = [one.ft + one.ct + one.launch for one in sums]
    waits = [one.synced_us + one.queued_us for one in (before, after)]
    wall = _times(base.t_wall_us, after.wall_us / before.wall_us)
    device = _scaled(base.device_active_us, before.device_us, after.device_us)
    fields: dict[str, Any] = dict.fromkeys(Variant.MEASUREMENTS)
    fields |= {
        "t_wall_us": wall,
        "t_host_us": _times(base.t_host_us, after.host_us / before.host_us if before.host_us else 1.0),
        "t_wait_us": _scaled(base.t_wait_us, *waits),
        "issue_us": _scaled(base.issue_us, *hosts),
        "launch_us": _scaled(base.launch_us, sums[0].launch, sums[1].launch),
        "launches": facts.launches,
        "graph_launches": facts.graph_launches,
        "kernels": facts.kernels,
        "memops": facts.memops,
        "device_active_us": device,
        "device_sum_us": _scaled(base.device_sum_us, sums[0].device, sums[1].device),
        "library_calls": facts.library_calls,
        "breakdown": _terms(base, sums[0], sums[1], device, facts),
    }
    prediction = Prediction(
        base=base.name,
        changes=[*(base.prediction.changes if base.prediction is not None else []), *changed.labels],
        base_error=base_error,
        wall_change=after.wall_us / before.wall_us - 1,
        orchestration_change=_orchestration_change(base.breakdown, fields["breakdown"]),
    )
    return Variant(
        name=AND.join([base.name, *changed.labels]),
        origin="predicted",
        status="ok",
        notes=changed.notes,
        exposed=_exposed(like, changed.timeline, wall.median),
        timeline=stored(changed.timeline),
        prediction=prediction,
        unmeasured={name: base.unmeasured.get(name, PREDICTED) for name, value in fields.items() if value is None},
        **fields,
    )


def _sums(review: Review, timeline: Timeline, speed: float) -> Sums:
    """The terms of a timeline whose host is ``speed`` times the measured one's."""
    items = timeline.items
    works = [item.action for item in items if isinstance(item.action, Work)]
    t_sys = review.machine.calibration.t_sys_us
    latency = timeline.floors.latency_us
    # Without T_sys, which a profile written by hand lacks, the call and the way after it: only quotients are used.
    floor = (review.machine.calibration.launch_us or 0.0) + latency if t_sys is None else t_sys.p50
    kernels = sum(work.kind == "kernel" for work in works)
    firsts = [work.first_node_us for work in works if work.first_node_us is not None]
    return Sums(
        ft=math.fsum(item.ft_us for item in items),
        ct=math.fsum(item.ct_us for item in items),
        launch=math.fsum(item.launch_us for item in items),
        kt=delta_kt(kernels, sped_up(floor, latency, speed), firsts),
        device=math.fsum(piece.us for work in works for piece in work.pieces),
    )


def _scaled(value: float | None, before: float, after: float) -> float | None:
    """A measured ``value`` by what the simulation changed; where the timeline had none of it, what was added."""
    if value is None:
        return None
    return value * (after / before) if before else value + after


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(
        median=interval.median * factor,
        low=interval.low * factor,
        high=interval.high * factor,
        samples=interval.samples,
    )


def _terms(base: Variant, before: Sums, after: Sums, device: float | None, facts: Facts) -> Breakdown | None:
    """The breakdown of the changed step; a term that the base lacks has its reason."""
    own = base.breakdown
    if own is None:
        return None
    ft = _scaled(own.ft_us, before.ft, after.ft)
    ct = _scaled(own.ct_us, before.ct, after.ct)
    kt = _scaled(own.kt_us, before.kt, after.kt)
    total = orchestration(ft, ct, kt) if ft is not None and ct is not None and kt is not None else None
    index = None if total is None or device is None else hdbi(device, total)
    values = {"ft_us": ft, "ct_us": ct, "kt_us": kt, "orchestration_us": total, "hdbi": index}
    reasons = {name: own.unmeasured.get(name, PREDICTED) for name, value in values.items() if value is None}
    if index is None and total is not None and device is not None:
        reasons["hdbi"] = no_hdbi(total, device)
    never = ("hdbi_untraced", "coverage", "closure_error")
    return Breakdown(
        ft_us=ft,
        ft_parts={} if ft is None else _parts(facts.ft_parts, ft),
        ct_us=ct,
        ct_source=facts.ct_source,
        kt_us=kt,
        kt_source=facts.kt_source,
        orchestration_us=total,
        hdbi=index,
        coverage=None,
        closure_error=None,
        unmeasured=reasons | dict.fromkeys(never, PREDICTED),
    )


def _parts(parts: dict[str, float], ft_us: float) -> dict[str, float]:
    """The parts of ΔFT all alike scaled onto ``ft_us``; none where they add up to nothing."""
    total = math.fsum(parts.values())
    return {name: us * (ft_us / total) for name, us in parts.items()} if total else {}


def _orchestration_change(before: Breakdown | None, after: Breakdown | None) -> float | None:
    if before is None or after is None or after.orchestration_us is None or not before.orchestration_us:
        return None
    return after.orchestration_us / before.orchestration_us - 1


def _exposed(like: Exposed, timeline: Timeline, wall_us: float) -> Exposed:
    """What the changed step exposes; there is no measured wall time that it could be wrong against."""
    assert like.latency_source is not None
    found = exposed_of(Built(timeline, like.latency_source, like.notes), wall_us)
    return msgspec.structs.replace(
        found, error=None, naive_error=None, unmeasured=dict.fromkeys(("error", "naive_error"), PREDICTED)
    )
