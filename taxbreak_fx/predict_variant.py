"""From a predicted layout to a finished variant: simulated, decomposed by the equations of ``decompose``, in rows."""

from __future__ import annotations

import collections
import math
from typing import Any, Literal

import msgspec

from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.decompose import delta_kt, hdbi, no_hdbi, orchestration
from taxbreak_fx.hardware import Profile
from taxbreak_fx.hardware_costs import floors
from taxbreak_fx.model import Variant
from taxbreak_fx.nodes import folded
from taxbreak_fx.predict_layout import GRAPH_LAUNCH, GraphLaunch, Layout, Place, Surrounding, timeline_of
from taxbreak_fx.record import Interval, SourceLine
from taxbreak_fx.timeline import Timeline, simulate
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import Breakdown, Exposed, Node
from taxbreak_fx.whatif_compare import PREDICTED

IN_GRAPH = "inside a CUDA graph: it has no host time of its own"
CT_SOURCE = "predicted from the profile"
_Key = tuple[str, str, str, str | None, SourceLine | None]


def t_sys(profile: Profile) -> float:
    """The launch floor that ΔKT is made of: traced, as reviews take it, else untraced.

    Raises ``UncoveredError`` where the profile has neither.
    """
    traced = profile.launch.t_sys_traced_us
    return traced if traced is not None else profile.number("launch.t_sys_us")


def variant_of(layout: Layout, profile: Profile) -> Variant:
    """The variant that ``layout`` describes.  Raises ``UncoveredError`` for a constant that the profile lacks.

    T_wall and T_host by the simulation; T_issue = Σ host time of the layout, T_wait = T_host − T_issue.  There is no
    interval: nothing was repeated.
    """
    timeline = timeline_of(layout, floors(profile))
    run = simulate(timeline)
    parts = _parts(layout)
    ft = math.fsum(parts.values())
    ct = math.fsum(place.ct_us for place in layout.places)
    own = [launch for place in layout.places for launch in place.launches]
    launched = [*own, *(node for graph in layout.graphs for node in graph.nodes)]
    kernels = sum(launch.kind == "kernel" for launch in own)
    launch_us = math.fsum([*(launch.launch_us for launch in own), *(graph.host_us for graph in layout.graphs)])
    issue = ft + ct + launch_us
    fields: dict[str, Any] = dict.fromkeys(Variant.MEASUREMENTS)
    fields |= {
        "t_wall_us": _point(run.wall_us),
        "t_host_us": _point(run.host_us),
        "t_wait_us": run.host_us - issue,
        "issue_us": issue,
        "launch_us": launch_us,
        "launches": kernels + len(layout.graphs),
        "graph_launches": len(layout.graphs),
        "kernels": sum(launch.kind == "kernel" for launch in launched),
        "memops": sum(launch.kind == "memop" for launch in launched),
        "device_active_us": run.device_us,
        "device_sum_us": math.fsum(launch.us for launch in launched),
        "breakdown": _breakdown(layout, profile, kernels, run.device_us, parts, ct),
    }
    return Variant(
        name=layout.name,
        origin="predicted",
        status="ok",
        notes=list(layout.notes),
        exposed=_exposed(timeline, profile, run.wall_us),
        timeline=stored(timeline),
        nodes=_nodes(layout, t_sys(profile)),
        unmeasured={name: PREDICTED for name, value in fields.items() if value is None},
        **fields,
    )


def _point(us: float) -> Interval:
    return Interval(median=us, low=us, high=us, samples=0)


def _parts(layout: Layout) -> dict[str, float]:
    """ΔFT by part, in the order in which the step meets them."""
    parts: dict[str, float] = collections.defaultdict(float)
    for entry in layout.entries:
        if isinstance(entry, Surrounding):
            parts[entry.part] += entry.us
        elif isinstance(entry, Place):
            parts[entry.part] += entry.ft_us
    return dict(parts)


def _breakdown(
    layout: Layout, profile: Profile, kernels: int, device_us: float, parts: dict[str, float], ct: float
) -> Breakdown:
    firsts = [graph.first_node_us for graph in layout.graphs]
    ft = math.fsum(parts.values())
    kt = delta_kt(kernels, t_sys(profile), firsts)
    total = orchestration(ft, ct, kt)
    index, untraced, other = hdbi(device_us, total), profile.launch.t_sys_us, None
    reasons = dict.fromkeys(("coverage", "closure_error"), PREDICTED)
    if index is None:
        reasons["hdbi"] = no_hdbi(total, device_us)
    if untraced is None:
        reasons["hdbi_untraced"] = profile.why_missing("launch.t_sys_us")
    else:
        total_untraced = orchestration(ft, ct, delta_kt(kernels, untraced, firsts))
        other = hdbi(device_us, total_untraced)
        if other is None:
            reasons["hdbi_untraced"] = no_hdbi(total_untraced, device_us)
    return Breakdown(
        ft_us=ft,
        ft_parts=parts,
        ct_us=ct,
        ct_source=CT_SOURCE,
        kt_us=kt,
        kt_source="untraced" if layout.graphs else None,
        orchestration_us=total,
        hdbi=index,
        hdbi_untraced=other,
        coverage=None,
        closure_error=None,
        unmeasured=reasons,
    )


def _exposed(timeline: Timeline, profile: Profile, wall_us: float) -> Exposed:
    """What the step exposes; there is no measured wall time that the simulation could be wrong against."""
    source: Literal["untraced", "traced"] = "traced" if profile.launch.t_sys_us is None else "untraced"
    found = exposed_of(Built(timeline, source, []), wall_us)
    return msgspec.structs.replace(
        found, error=None, naive_error=None, unmeasured=dict.fromkeys(("error", "naive_error"), PREDICTED)
    )


def _nodes(layout: Layout, floor_us: float) -> list[Node]:
    """Rows by op, kind, module path with its numbers folded, and line; the costliest first."""
    groups: dict[_Key, list[Place]] = collections.defaultdict(list)
    held: dict[_Key, list[Place]] = collections.defaultdict(list)
    for entry in layout.entries:
        if isinstance(entry, Place) and entry.shown:
            groups[_key(entry)].append(entry)
        elif isinstance(entry, GraphLaunch):
            for place in entry.held:
                held[_key(place)].append(place)
    nodes = [_node(places, floor_us) for places in groups.values()]
    nodes += [_held_node(places) for places in held.values()]
    nodes += [_graph_node(layout)] if layout.graphs else []
    return sorted(
        nodes, key=lambda n: ((n.ft_us or 0.0) + (n.ct_us or 0.0) + (n.kt_us or 0.0), n.device_us or 0.0), reverse=True
    )


def _key(place: Place) -> _Key:
    return place.op, place.kind.family, place.kind.library, folded(place.module_path), place.source


def _node(places: list[Place], floor_us: float) -> Node:
    kernels = _kernels(places)
    return _row(
        places,
        launches=kernels,
        kernels=kernels,
        ft_us=math.fsum(place.ft_us for place in places),
        ct_us=math.fsum(place.ct_us for place in places),
        kt_us=kernels * floor_us,
        unmeasured={},
    )


def _held_node(places: list[Place]) -> Node:
    reasons = dict.fromkeys(("ft_us", "ct_us"), IN_GRAPH)
    kernels = _kernels(places)
    return _row(places, launches=0, kernels=kernels, ft_us=None, ct_us=None, kt_us=0.0, unmeasured=reasons)


def _kernels(places: list[Place]) -> int:
    return sum(launch.kind == "kernel" for place in places for launch in place.launches)


def _row(places: list[Place], **values: Any) -> Node:
    first = places[0]
    return Node(
        op=first.op,
        family=first.kind.family,
        library=first.kind.library,
        i_lib=first.kind.i_lib,
        reason=first.kind.reason,
        module_path=folded(first.module_path),
        source=first.source,
        count=len(places),
        device_us=math.fsum(launch.us for place in places for launch in place.launches),
        match_tier=None,
        **values,
    )


def _graph_node(layout: Layout) -> Node:
    elsewhere = "counted in the rows of its kernels"
    return Node(
        op="cudaGraphLaunch",
        family=GRAPH_LAUNCH.family,
        library=GRAPH_LAUNCH.library,
        i_lib=GRAPH_LAUNCH.i_lib,
        reason=GRAPH_LAUNCH.reason,
        module_path=None,
        source=None,
        count=len(layout.graphs),
        launches=len(layout.graphs),
        kernels=None,
        ft_us=None,
        ct_us=None,
        kt_us=math.fsum(graph.first_node_us for graph in layout.graphs),
        device_us=None,
        match_tier=None,
        unmeasured={
            "ft_us": "in ft_parts: the graph's runtime",
            "ct_us": "a graph launch makes no library call",
            "kernels": elsewhere,
            "device_us": elsewhere,
        },
    )
