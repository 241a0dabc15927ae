"""What a saved review says of a step that nobody ran: without guards, in CUDA graphs, on a faster host; they compose.

The timeline of a measured variant is changed and simulated.  What is predicted of T_wall is the measured T_wall of the
variant × simulated(changed) ÷ simulated(as measured).  What the simulation is wrong by on the step as it is, is known
and stands beside it (``Prediction.base_error``); most of it is host or device time that is some per cent too long or
too short, and is so in both: the quotient is free of it, and a change that changes nothing predicts what was measured.
T_host, the terms and T_DeviceActive are scaled likewise, each by its own quotient.  docs/whatif.md: what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.decompose import delta_kt, hdbi, no_hdbi, orchestration
from taxbreak_fx.errors import FormatError, UsageError
from taxbreak_fx.model import Breakdown, Comparison, Exposed, Prediction, Review, Variant
from taxbreak_fx.record import Interval, Record
from taxbreak_fx.timeline import Timeline, Work, simulate
from taxbreak_fx.timeline_store import restored, stored
from taxbreak_fx.whatif_compare import PREDICTED, checked, compared
from taxbreak_fx.whatif_timeline import (
    GraphCost,
    as_graphs,
    graph_cost,
    graph_points,
    on_faster_host,
    sped_up,
    without_guards,
)

# The variant that runs a base's step in a CUDA graph.
GRAPHED = {"eager": "eager-graph", "inductor": "reduce-overhead"}
GUARDS, GRAPH, CPU = "no guards", "graph", "cpu"
AND = " + "  # between a variant's name and what was changed
PAPER = "faster host CPU as published (arXiv 2603.12465): T_Orchestration −10 … −29 %, end to end up to −14 %"


class Change(Record, frozen=True, kw_only=True):
    """What to change, in the order in which it is done: guards go, then graphs are made, then the host gets faster.

    Guards are priced at the speed of the measured host, and so is a graph launch: both come before that speed changes.
    """

    no_guards: bool = False
    cuda_graph: bool = False
    cpu_speed: float | None = None


class _Changed(NamedTuple):
    """A changed step: ``labels`` of what was done to it, and notes on what that rests on."""

    timeline: Timeline
    labels: list[str]
    notes: list[str]


class _Sums(NamedTuple):
    """Host time of a timeline by term, and ΔKT; microseconds."""

    ft: float
    ct: float
    launch: float
    kt: float


def check(change: Change) -> None:
    """Raise ``UsageError`` for a change of nothing, or a speed that no host can have."""
    speed = change.cpu_speed
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"--cpu-speed must be a positive factor, 1.2 for a host 1.2 times as fast; got {speed:g}")
    if speed is None and not change.no_guards and not change.cuda_graph:
        raise UsageError("nothing to change: give --cuda-graph, --cpu-speed FACTOR or --no-guards")


def whatif(review: Review, change: Change, names: Sequence[str] = (), source: str = "the review") -> Review:
    """``review`` with a predicted variant behind each one that is changed, and behind that the one that really ran so.

    ``names``: the variants to change; without any, the measured ones that the change is about: not yet graphed ones for
    ``cuda_graph``, else those with guards for ``no_guards``, else all.  ``source`` (a file name) opens error lines.
    Raises ``UsageError`` as ``check`` does and for names that cannot be changed so, ``FormatError`` without timelines.
    """
    check(change)
    bases = _bases(review, change, names, source)
    found: dict[str, Variant] = {}
    comparisons: list[Comparison] = []
    eager = next((v for v in review.variants if v.name == "eager" and v.status == "ok"), None)
    if eager is not None:
        found["eager"] = eager
    for base in bases:
        made = _predicted(review, base, change)
        real = next((v for v in review.variants if change.cuda_graph and v.name == GRAPHED.get(base.name)), None)
        if made.prediction is not None:
            if real is not None and real.t_wall_us is not None and made.prediction.changes == [GRAPH]:
                made = checked(review, made, base, real)
            if eager is not None:
                comparisons.append(compared(review, eager, base, made))
            if base.name != "eager":
                comparisons.append(compared(review, base, base, made))
        found |= {one.name: one for one in (base, made, *([real] if real is not None else []))}
    kept = [c for c in review.comparisons if c.base in found and c.variant in found]
    notes = ["predicted variants are simulated from measured ones: docs/whatif.md says what that leaves out"]
    notes += [PAPER] if change.cpu_speed is not None else []
    return msgspec.structs.replace(
        review,
        origin="predicted",
        variants=list(found.values()),
        comparisons=[*kept, *comparisons],
        notes=[*notes, *(note for note in review.notes if note not in notes)],
    )


def _bases(review: Review, change: Change, names: Sequence[str], source: str) -> list[Variant]:
    """The variants to change.  Raises as ``whatif`` does."""
    known = {variant.name: variant for variant in review.variants}
    for name in dict.fromkeys(names):
        if name not in known:
            raise UsageError(f"{source} has no variant {name!r}; it has {', '.join(known)}")
        if (why := _no_timeline(known[name])) is not None:
            raise FormatError(f"{source}: {name} has no timeline ({why}); choose another --variant")
        if not any(_applies(known[name], change)):
            raise UsageError(f"none of these changes is one for {name}: {'; '.join(_not_applied(known[name], change))}")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    usable = [variant for variant in review.variants if _no_timeline(variant) is None]
    if not usable:
        why = next((_no_timeline(v) for v in review.variants if v.status == "ok"), None) or "no variant was measured"
        raise FormatError(f"{source} has no timeline to change ({why}); review the model again on a CUDA device")
    measured = [variant for variant in usable if variant.origin == "measured"] or usable
    about = (change.cuda_graph, change.no_guards, change.cpu_speed is not None).index(True)
    chosen = [variant for variant in measured if (_graphable, _has_guards, _always)[about](variant)]
    if not chosen:
        reasons = "; ".join(f"{v.name}: {', '.join(_not_applied(v, change))}" for v in measured)
        raise UsageError(f"{source} has no variant that these changes are for: {reasons}")
    return chosen


def _no_timeline(variant: Variant) -> str | None:
    """Why a variant cannot be changed; None where it can."""
    if variant.status != "ok":
        return variant.reason or variant.status
    if variant.exposed is not None and variant.exposed.wall_us is None:
        return variant.exposed.unmeasured["wall_us"]
    if variant.timeline is None or variant.exposed is None:
        return "made by an older taxbreak_fx, which kept none"
    return None


def _graphable(variant: Variant) -> bool:
    return variant.graph_launches == 0


def _has_guards(variant: Variant) -> bool:
    return variant.breakdown is not None and variant.breakdown.ft_parts.get("guards", 0.0) > 0


def _always(variant: Variant) -> bool:
    return True


def _applies(variant: Variant, change: Change) -> tuple[bool, bool, bool]:
    """Whether guards, graphs, speed are changed in this variant."""
    return (
        change.no_guards and _has_guards(variant),
        change.cuda_graph and _graphable(variant),
        change.cpu_speed is not None,
    )


def _not_applied(variant: Variant, change: Change) -> list[str]:
    """What was asked for and is nothing for this variant."""
    guards, graph, _ = _applies(variant, change)
    found = ["it launches CUDA graphs already"] if change.cuda_graph and not graph else []
    parts = variant.breakdown.ft_parts if variant.breakdown is not None else {}
    why = "its guards are not told from the frame" if "guards_and_frame" in parts else "no time of guards is known"
    return found + ([why] if change.no_guards and not guards else [])


def _change(review: Review, base: Variant, timeline: Timeline, change: Change) -> _Changed | tuple[list[str], str]:
    """The changed step, or the labels of what was wanted and why it cannot be."""
    guards, graph, _ = _applies(base, change)
    speed = change.cpu_speed
    wanted = [GUARDS] * guards + [GRAPH] * graph + ([f"{CPU} {speed:g}"] if speed is not None else [])
    notes = [f"not applied: {why}" for why in _not_applied(base, change)]
    if guards:
        assert base.breakdown is not None
        timeline = without_guards(timeline, base.breakdown.ft_parts["guards"])
    if graph:
        cost = _graph_cost(review, base, timeline)
        made = cost if isinstance(cost, str) else as_graphs(timeline, cost)
        if isinstance(made, str):
            return wanted, made
        timeline = made
        assert isinstance(cost, GraphCost)
        notes.append(f"a graph launch costs as {cost.source}")
    if speed is not None:
        timeline = on_faster_host(timeline, speed)
    return _Changed(timeline, wanted, notes)


def _graph_cost(review: Review, base: Variant, timeline: Timeline) -> GraphCost | str:
    """From the graph launches that this review measured: not those of the very step to predict, if there are others."""
    launch_us = review.machine.calibration.launch_us
    if launch_us is None:
        return f"no launch cost: {review.machine.calibration.unmeasured['launch_us']}"
    measured = {
        v.name: points
        for v in review.variants
        if v.origin == "measured" and v.timeline is not None and (points := graph_points(restored(v.timeline)))
    }
    own = GRAPHED.get(base.name.split(AND)[0])
    others = {name: points for name, points in measured.items() if name != own}
    used = others or measured
    if not used:
        return "what a graph launch costs is not known: no graphed variant of this review has a timeline"
    counts = ", ".join(f"{name} ({', '.join(str(p.nodes) for p in points)} nodes)" for name, points in used.items())
    source = f"measured in {counts}, linear in nodes from one kernel's launch"
    source += "" if others else "; that is the variant to compare with, so this cost is not predicted"
    every = [point for points in used.values() for point in points]
    return graph_cost(launch_us, timeline.floors.latency_us, every, source)


def _predicted(review: Review, base: Variant, change: Change) -> Variant:
    """The changed variant; unavailable with its reason where it cannot be."""
    assert base.timeline is not None and base.t_wall_us is not None and base.t_host_us is not None
    timeline = restored(base.timeline)
    changed = _change(review, base, timeline, change)
    if not isinstance(changed, _Changed):
        labels, why = changed
        name = AND.join([base.name, *labels])
        return msgspec.structs.replace(Variant.unavailable(name, "skipped", why), origin="predicted")
    before, after = simulate(timeline), simulate(changed.timeline)
    graphed = GRAPH in changed.labels
    works = [item.action for item in changed.timeline.items if isinstance(item.action, Work)]
    graphs = sum(work.kind == "graph" for work in works)
    speed = change.cpu_speed or 1.0
    sums = [_sums(review, timeline, 1.0), _sums(review, changed.timeline, speed)]
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
        "launches": sum(work.kind != "memop" for work in works) if graphed else base.launches,
        "graph_launches": graphs if graphed else base.graph_launches,
        "kernels": base.kernels,
        "memops": base.memops,
        "device_active_us": device,
        "device_sum_us": base.device_sum_us,
        "library_calls": None if graphed else base.library_calls,
        "breakdown": _terms(base, sums[0], sums[1], device, changed.labels),
    }
    reasons = {
        name: base.unmeasured.get(name, PREDICTED) if not graphed else PREDICTED
        for name, value in fields.items()
        if value is None
    }
    prediction = Prediction(
        base=base.name,
        changes=[*(base.prediction.changes if base.prediction is not None else []), *changed.labels],
        base_error=_base_error(base),
        wall_change=after.wall_us / before.wall_us - 1,
        orchestration_change=_orchestration_change(base.breakdown, fields["breakdown"]),
    )
    return Variant(
        name=AND.join([base.name, *changed.labels]),
        origin="predicted",
        status="ok",
        notes=changed.notes,
        exposed=_exposed(base, changed.timeline, wall.median),
        timeline=stored(changed.timeline),
        prediction=prediction,
        unmeasured=reasons,
        **fields,
    )


def _sums(review: Review, timeline: Timeline, speed: float) -> _Sums:
    """The terms of a timeline whose host is ``speed`` times the measured one's."""
    items = timeline.items
    works = [item.action for item in items if isinstance(item.action, Work)]
    t_sys = review.machine.calibration.t_sys_us
    floor = 0.0 if t_sys is None else sped_up(t_sys.p50, timeline.floors.latency_us, speed)
    kernels = sum(work.kind == "kernel" for work in works)
    firsts = [work.first_node_us for work in works if work.first_node_us is not None]
    return _Sums(
        ft=math.fsum(item.ft_us for item in items),
        ct=math.fsum(item.ct_us for item in items),
        launch=math.fsum(item.launch_us for item in items),
        kt=delta_kt(kernels, floor, firsts),
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


def _terms(base: Variant, before: _Sums, after: _Sums, device: float | None, labels: Sequence[str]) -> Breakdown | None:
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
    graphed = GRAPH in labels
    return Breakdown(
        ft_us=ft,
        ft_parts={} if graphed or ft is None else _parts(own.ft_parts, ft, GUARDS in labels),
        ct_us=ct,
        ct_source=f"predicted from {base.name}" if graphed else own.ct_source,
        kt_us=kt,
        kt_source=None if graphed else own.kt_source,
        orchestration_us=total,
        hdbi=index,
        coverage=None,
        closure_error=None,
        unmeasured=reasons | dict.fromkeys(never, PREDICTED),
    )


def _parts(parts: dict[str, float], ft_us: float, no_guards: bool) -> dict[str, float]:
    """The parts of ΔFT that are left, all alike scaled onto ``ft_us``; none where they add up to nothing."""
    left = {name: us for name, us in parts.items() if not (no_guards and name == "guards")}
    total = math.fsum(left.values())
    return {name: us * (ft_us / total) for name, us in left.items()} if total else {}


def _orchestration_change(before: Breakdown | None, after: Breakdown | None) -> float | None:
    if before is None or after is None or after.orchestration_us is None or not before.orchestration_us:
        return None
    return after.orchestration_us / before.orchestration_us - 1


def _base_error(base: Variant) -> float:
    """Of the simulation on the measured step; of a predicted base, that of the step it came from."""
    if base.prediction is not None:
        return base.prediction.base_error
    assert base.exposed is not None and base.exposed.error is not None  # it was measured and simulated
    return base.exposed.error


def _exposed(base: Variant, timeline: Timeline, wall_us: float) -> Exposed:
    """What the changed step exposes; there is no measured wall time that it could be wrong against."""
    assert base.exposed is not None and base.exposed.latency_source is not None
    found = exposed_of(Built(timeline, base.exposed.latency_source, base.exposed.notes), wall_us)
    return msgspec.structs.replace(
        found, error=None, naive_error=None, unmeasured=dict.fromkeys(("error", "naive_error"), PREDICTED)
    )
