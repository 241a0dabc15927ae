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

import msgspec

from taxbreak_fx.errors import FormatError, UsageError
from taxbreak_fx.findings import with_findings
from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.record import Record
from taxbreak_fx.timeline import Timeline, Work
from taxbreak_fx.timeline_store import restored
from taxbreak_fx.whatif_compare import checked, compared
from taxbreak_fx.whatif_timeline import (
    GraphCost,
    GraphLaunches,
    as_graphs,
    graph_cost,
    graph_points,
    on_faster_host,
    without_guards,
)
from taxbreak_fx.whatif_variant import AND, Changed, Facts, changed_variant

# The variant that runs a base's step in a CUDA graph.
GRAPHED = {"eager": "eager-graph", "inductor": "reduce-overhead"}
GUARDS, GRAPH, CPU = "no guards", "graph", "cpu"
PAPER = "faster host CPU as published (arXiv 2603.12465): T_Orchestration −10 … −29 %, end to end up to −14 %"


class Change(Record, frozen=True, kw_only=True):
    """What to change, in the order in which it is done: guards go, then graphs are made, then the host gets faster.

    Guards are priced at the speed of the measured host, and so is a graph launch: both come before that speed changes.
    """

    no_guards: bool = False
    cuda_graph: bool = False
    cpu_speed: float | None = None


def check(change: Change) -> None:
    """Raise ``UsageError`` for a change of nothing, or a speed that no host can have."""
    check_speed(change)
    if change == Change():
        raise UsageError(
            "nothing to change: give --cuda-graph, --cpu-speed FACTOR, --no-guards, --batch N, "
            "--experts-implementation NAME or --attn-implementation NAME"
        )


def check_speed(change: Change) -> None:
    """Raise ``UsageError`` for a speed that no host can have."""
    speed = change.cpu_speed
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"--cpu-speed must be a positive factor, 1.2 for a host 1.2 times as fast; got {speed:g}")


def whatif(
    review: Review,
    change: Change,
    names: Sequence[str] = (),
    source: str = "the review",
    among: Sequence[str] = (),
    elsewhere: GraphLaunches | None = None,
) -> Review:
    """``review`` with a predicted variant behind each one that is changed, and behind that the one that really ran so.

    ``names``: the variants to change; without any, those ``among`` (default: the measured ones) that the change is
    about: not yet graphed ones for ``cuda_graph``, else those with guards for ``no_guards``, else all.
    ``elsewhere``: graph launches that tell what one costs, for a review without any.  ``source`` (a file name) opens
    error lines.
    Raises ``UsageError`` as ``check`` does and for names that cannot be changed so, ``FormatError`` without timelines.
    """
    check(change)
    bases = _bases(review, change, names, source, among)
    found: dict[str, Variant] = {}
    comparisons: list[Comparison] = []
    eager = next((v for v in review.variants if v.name == "eager" and v.status == "ok"), None)
    if eager is not None:
        found["eager"] = eager
    for base in bases:
        made = _predicted(review, base, change, elsewhere)
        real = next((v for v in review.variants if change.cuda_graph and v.name == GRAPHED.get(base.name)), None)
        if made.prediction is not None:
            if (
                real is not None
                and real.origin == "measured"
                and real.t_wall_us is not None
                and made.prediction.changes == [GRAPH]
            ):
                made = checked(review, made, base, real)
            if eager is not None:
                comparisons.append(compared(review, eager, base, made))
            if base.name != "eager":
                comparisons.append(compared(review, base, base, made))
        found |= {one.name: one for one in (base, made, *([real] if real is not None else []))}
    kept = [c for c in review.comparisons if c.base in found and c.variant in found]
    notes = ["predicted variants are simulated from measured ones: docs/whatif.md says what that leaves out"]
    notes += [PAPER] if change.cpu_speed is not None else []
    predicted = msgspec.structs.replace(
        review,
        origin="predicted",
        variants=list(found.values()),
        comparisons=[*kept, *comparisons],
        notes=[*notes, *(note for note in review.notes if note not in notes)],
    )
    return with_findings(predicted)


def _bases(review: Review, change: Change, names: Sequence[str], source: str, among: Sequence[str]) -> list[Variant]:
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
    measured = [v for v in usable if (v.name in among if among else v.origin == "measured")] or usable
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


def _change(
    review: Review, base: Variant, timeline: Timeline, change: Change, elsewhere: GraphLaunches | None
) -> Changed | tuple[list[str], str]:
    """The changed step, or the labels of what was wanted and why it cannot be."""
    guards, graph, _ = _applies(base, change)
    speed = change.cpu_speed
    wanted = [GUARDS] * guards + [GRAPH] * graph + ([f"{CPU} {speed:g}"] if speed is not None else [])
    notes = [f"not applied: {why}" for why in _not_applied(base, change)]
    if guards:
        assert base.breakdown is not None
        timeline = without_guards(timeline, base.breakdown.ft_parts["guards"])
    if graph:
        cost = _graph_cost(review, base, timeline, elsewhere)
        made = cost if isinstance(cost, str) else as_graphs(timeline, cost)
        if isinstance(made, str):
            return wanted, made
        timeline = made
        assert isinstance(cost, GraphCost)
        notes.append(f"a graph launch costs as {cost.source}")
    if speed is not None:
        timeline = on_faster_host(timeline, speed)
    return Changed(timeline, wanted, notes)


def _graph_cost(review: Review, base: Variant, timeline: Timeline, elsewhere: GraphLaunches | None) -> GraphCost | str:
    """From the graph launches of this review, not those of the very step to predict if there are others; without any,
    from those ``elsewhere``."""
    launch_us = review.machine.calibration.launch_us
    if launch_us is None:
        return f"no launch cost: {review.machine.calibration.unmeasured['launch_us']}"
    points = {
        v.name: (v, found)
        for v in review.variants
        if v.timeline is not None and (found := graph_points(restored(v.timeline)))
    }
    # Rather what was measured, or is a profile's, than what was made from that.
    first = {name: one for name, one in points.items() if one[0].prediction is None} or points
    own = GRAPHED.get(base.name.split(AND)[0])
    others = {name: one for name, one in first.items() if name.split(AND)[0] != own}
    used = others or first
    if not used and elsewhere is not None and elsewhere.points:
        counts = ", ".join(str(point.nodes) for point in elsewhere.points)
        source = f"in {elsewhere.source} ({counts} nodes), linear in nodes from one kernel's launch"
        return graph_cost(launch_us, timeline.floors.latency_us, elsewhere.points, source)
    if not used:
        return "what a graph launch costs is not known: no graphed variant of this review has a timeline"
    counts = ", ".join(f"{name} ({', '.join(str(p.nodes) for p in found)} nodes)" for name, (_, found) in used.items())
    way = "measured" if all(variant.origin == "measured" for variant, _ in used.values()) else "predicted"
    source = f"{way} in {counts}, linear in nodes from one kernel's launch"
    source += "" if others else "; that is the variant to compare with, so this cost is not predicted"
    every = [point for _, found in used.values() for point in found]
    return graph_cost(launch_us, timeline.floors.latency_us, every, source)


def _predicted(review: Review, base: Variant, change: Change, elsewhere: GraphLaunches | None) -> Variant:
    """The changed variant; unavailable with its reason where it cannot be."""
    assert base.timeline is not None and base.exposed is not None
    timeline = restored(base.timeline)
    changed = _change(review, base, timeline, change, elsewhere)
    if not isinstance(changed, Changed):
        labels, why = changed
        name = AND.join([base.name, *labels])
        return msgspec.structs.replace(Variant.unavailable(name, "skipped", why), origin="predicted")
    facts = _facts(base, changed)
    return changed_variant(
        review, base, timeline, changed, facts, base.exposed, _base_error(base), change.cpu_speed or 1.0
    )


def _facts(base: Variant, changed: Changed) -> Facts:
    """The kernels of a base stay what they are; its launches and what its host does become others in graphs."""
    graphed = GRAPH in changed.labels
    works = [item.action for item in changed.timeline.items if isinstance(item.action, Work)]
    graphs = sum(work.kind == "graph" for work in works)
    own = base.breakdown
    parts = {} if graphed or own is None else own.ft_parts
    return Facts(
        launches=sum(work.kind != "memop" for work in works) if graphed else base.launches,
        graph_launches=graphs if graphed else base.graph_launches,
        kernels=base.kernels,
        memops=base.memops,
        library_calls=None if graphed else base.library_calls,
        ft_parts={name: us for name, us in parts.items() if not (GUARDS in changed.labels and name == "guards")},
        ct_source=f"predicted from {base.name}" if graphed or own is None else own.ct_source,
        kt_source=None if graphed or own is None else own.kt_source,
    )


def _base_error(base: Variant) -> float:
    """Of the simulation on the measured step; of a predicted base, that of the step it came from.  A step that a
    profile predicts is what was simulated: there is nothing to be off from."""
    if base.prediction is not None:
        return base.prediction.base_error
    assert base.exposed is not None
    return base.exposed.error or 0.0
