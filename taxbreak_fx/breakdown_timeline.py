"""The timeline of a measured variant: its host time as the breakdown has it, its launches and device work as traced.

Where in the step's host time a launch lies is known by the site that makes it.  What no clock tells is spread evenly:
the glue over the places between the sites, what surrounds a graph callable over its two sides, a site's own time over
its launches.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from taxbreak_fx.breakdown_launch import LaunchTerm
from taxbreak_fx.breakdown_library import LibraryTerm
from taxbreak_fx.draft import Draft
from taxbreak_fx.kinds import is_wrapper_line, kernel_kind, site_kind
from taxbreak_fx.machine import Calibration
from taxbreak_fx.record import SourceLine
from taxbreak_fx.recording import Activity, Timing, Trace
from taxbreak_fx.timeline import Floors, Item, Piece, Simulator, Sync, Timeline, Work, launch_latency
from taxbreak_fx.variant_record import Exposed

# Conventions, not measurements: no clock is read between a launch and the end of its call.
RETURN_SHARE = 0.1  # of a call's host time that lies behind its launches: an op launches last, and returns
AFTER_SHARE = 0.1  # of what surrounds a graph callable or a graph launch that lies behind it: guards and copies precede
TOP_LINES = 20
BETWEEN, AROUND, GRAPH = "between recorded calls", "around compiled graphs", "graph-launch"
CPU = "the CPU device: host and device are one thread, nothing is hidden"
_AWAITED = ("Memcpy DtoH", "Pageable")  # copies for which the host waits, as the trace names them


class Built(NamedTuple):
    """A timeline with what a reader should know of it; ``latency_source``: which T_sys L comes from."""

    timeline: Timeline
    latency_source: Literal["untraced", "traced"]
    notes: list[str]


class _Call(NamedTuple):
    """One launch of the trace, ready to be put into an item; ``awaited``: a copy for which the host may wait."""

    work: Work
    launch_us: float
    awaited: bool


class _Place(NamedTuple):
    """A recorded call, or a launch outside them: its host time, its launches, and how often the host waits in it.

    ``graph``: what surrounds it, by number; None where it is itself part of the surroundings.
    """

    own_us: float
    ct_us: float
    calls: list[_Call]
    syncs: int
    family: str
    source: SourceLine | None
    graph: int | None


class _Surroundings(NamedTuple):
    """Host time outside recorded calls and launches."""

    us: float
    family: str


def floors_of(calibration: Calibration) -> tuple[Floors, Literal["untraced", "traced"]] | str:
    """L, g and s of the machine and which T_sys L comes from, or the reason why one is missing."""
    path, gaps = calibration.launch_path, calibration.device_path
    source: Literal["untraced", "traced"] = "untraced"
    if path.t_sys_untraced_us is not None and path.idle_us is not None:
        latency = launch_latency(path.t_sys_untraced_us.p50, path.idle_us.p50)
    elif calibration.t_sys_us is not None and calibration.launch_us is not None:
        latency, source = launch_latency(calibration.t_sys_us.p50, calibration.launch_us), "traced"
    else:
        missing = calibration.unmeasured
        return f"no launch latency: {missing.get('t_sys_us') or missing['launch_us']}"
    if gaps.gap_us is None or gaps.graph_gap_us is None or gaps.sync_us is None:
        name = next(name for name in ("gap_us", "graph_gap_us", "sync_us") if name in gaps.unmeasured)
        return f"no {name.removesuffix('_us').replace('_', ' ')}: {gaps.unmeasured[name]}"
    if min(gaps.gap_us, gaps.sync_us) < 0:
        return f"gap of {gaps.gap_us:.2f} µs, sync return of {gaps.sync_us:.2f}: below zero"
    return Floors(
        latency_us=latency,
        gap_us=gaps.gap_us,
        graph_gap_us=gaps.graph_gap_us,
        sync_us=gaps.sync_us,
        idle_sync_us=None if gaps.idle_sync_us is None else gaps.idle_sync_us.p50,
    ), source


def timeline_of(
    draft: Draft, trace: Trace, library: LibraryTerm, launched: LaunchTerm, issue_us: float | None
) -> Built | str:
    """The step of ``draft``, whose clock and spans are without waits, or the reason why it cannot be laid out.

    ``issue_us``: T_issue, onto which the clocked pieces are scaled all alike: the host's time in the result is T_issue.
    """
    timing, step = draft.timing, trace.step
    found = floors_of(draft.recording.calibration)
    graphs = sum(launch.kind == "graph" for launch in step.launches)
    if isinstance(found, str):
        return found
    floors, source = found
    if issue_us is None:
        return draft.reasons.get("issue_us", "T_issue is not known")
    if draft.spans is None or (draft.clock is None and timing.graph_launch_us is None):
        return timing.in_situ_failure or "no in-situ times"
    if step.sites != len(timing.sites):
        return "the traced step met other calls than the timed one: its work depends on data"
    if library.total is None or launched.total is None:
        return library.missing or launched.missing
    if len(trace.graph_latency_us) != graphs:
        return f"the latency of {len(trace.graph_latency_us)} of {graphs} graph launches was measured"
    calls = list(_calls(trace, launched, draft.recording.launch_us or 0.0))
    syncs = collections.Counter(site for _, site in step.syncs)
    loose = sum(call.awaited for site, call in calls if site is None)
    if syncs[None] > loose:
        names = ", ".join(sorted({name for name, site in step.syncs if site is None}))
        return f"the step blocks between recorded calls ({names}), at a place that the trace does not tell"
    notes = []
    if graphs:
        gap_us = node_gap(timing, [call.work for _, call in calls if call.work.kind == "graph"])
        if isinstance(gap_us, str):
            notes.append(f"nodes of its CUDA graphs are taken to follow each other as null kernels do: {gap_us}")
        elif gap_us is not None:
            floors = msgspec.structs.replace(floors, graph_gap_us=gap_us)
    timeline = Timeline(items=tuple(_items(draft, library, issue_us, calls, syncs, floors)), floors=floors)
    streams = {call.work.stream for _, call in calls}
    if len(streams) > 1:
        notes.append(f"work on {len(streams)} streams runs side by side: the trace does not tell what they wait for")
    return Built(timeline, source, notes)


def node_gap(timing: Timing, works: Sequence[Work]) -> float | str | None:
    """From the end of a node of the step's CUDA graphs until the next one starts, so that traced durations add up to
    the un-instrumented times of the graphs; below zero where nodes overlap.  The reason where those were not measured;
    None where no graph has a second node.
    """
    if timing.graph_span_us is None:
        return timing.graph_span_failure or "not measured by the version that timed it"
    if len(timing.graph_span_us) != len(works):
        return f"{len(timing.graph_span_us)} graphs were timed on the device, {len(works)} traced"
    gaps = sum(len(work.pieces) - 1 for work in works)
    traced = sum(piece.us for work in works for piece in work.pieces)
    return (sum(timing.graph_span_us) - traced) / gaps if gaps else None


def exposed_of(built: Built | str, wall_us: float) -> Exposed:
    """What the timeline yields, beside the measured ``wall_us``."""
    if isinstance(built, str):
        return Exposed.unavailable(built)
    simulator = Simulator(built.timeline)
    found, naive, costs = simulator.simulated(), simulator.naive_us(), simulator.exposed()
    return Exposed(
        wall_us=found.wall_us,
        host_us=found.host_us,
        error=found.wall_us / wall_us - 1,
        naive_us=naive,
        naive_error=naive / wall_us - 1,
        idle_us=found.idle_us,
        synced_us=found.synced_us,
        queued_us=found.queued_us,
        ft_us=costs["ft"],
        ct_us=costs["ct"],
        kt_us=costs["kt"],
        sync_us=costs["sync"],
        device_us=costs["device"],
        waterfall={str(term): us for term, us in simulator.waterfall().items()},
        families=simulator.families(),
        lines=simulator.lines(TOP_LINES),
        floors_us={name: us for name, us in msgspec.structs.asdict(built.timeline.floors).items() if us is not None},
        latency_source=built.latency_source,
        notes=built.notes,
    )


def _calls(trace: Trace, launched: LaunchTerm, each_us: float) -> Iterator[tuple[int | None, _Call]]:
    """Every launch of the trace with its site, in issue order; work whose launch is not in the trace stands behind the
    launch that began before it.

    ``each_us``: what a launch of no site costs in a step with graph launches, which take the rest of the term.
    """
    step = trace.step
    count = collections.Counter((launch.kind, launch.site) for launch in step.launches)
    graphs = sum(launch.kind == "graph" for launch in step.launches)
    loose = count["kernel", None]
    rest = max(0.0, (launched.total or 0.0) - sum(launched.sites.values()))
    loose_us = min(rest, each_us * loose) if graphs else rest if loose else 0.0
    work = _own_work(trace)
    latency = iter(trace.graph_latency_us)
    orphans = collections.deque(work[None])
    for index, launch in enumerate(step.launches):
        own = work[index]
        while orphans and own and orphans[0][0].start_us < own[0][0].start_us:
            yield None, _orphan(*orphans.popleft())
        first = None
        if launch.kind == "graph":
            call_us, first = (rest - loose_us) / graphs, max(0.0, next(latency))
            # A node that runs beside others for its whole length neither takes time nor leaves a gap.
            pieces = tuple(piece for _, piece in own if piece.us) or (own[0][1],)
        else:
            sited = launched.sites.get(launch.site, 0.0) if launch.site is not None else loose_us
            call_us = max(0.0, sited) / count["kernel", launch.site] if launch.kind == "kernel" else 0.0
            pieces = (Piece(us=sum(piece.us for _, piece in own), family=own[0][1].family),)
        made = Work(kind=launch.kind, stream=own[0][0].stream, pieces=pieces, first_node_us=first)
        awaited = launch.kind == "memop" and any(mark in own[0][0].name for mark in _AWAITED)
        yield launch.site, _Call(made, call_us, awaited)
    for activity, piece in orphans:
        yield None, _orphan(activity, piece)


def _own_work(trace: Trace) -> dict[int | None, list[tuple[Activity, Piece]]]:
    """Activities by launch, by start, each with the time that it adds to those before it on its stream or in its graph:
    there, a kernel that starts before the last one has ended is no longer work for the part that they share."""
    found: dict[int | None, list[tuple[Activity, Piece]]] = collections.defaultdict(list)
    ended: dict[tuple[str, int], float] = {}
    for activity in sorted(trace.step.activities, key=lambda one: one.start_us):
        launch = None if activity.launch is None else trace.step.launches[activity.launch]
        in_graph = launch is not None and launch.kind == "graph" and activity.launch is not None
        line = ("graph", activity.launch or 0) if in_graph else ("stream", activity.stream)
        stop = activity.start_us + activity.duration_us
        begin = max(activity.start_us, ended.get(line, activity.start_us))
        ended[line] = max(stop, begin)
        us = activity.duration_us if begin == activity.start_us else max(0.0, stop - begin)
        found[activity.launch].append(
            (activity, Piece(us=us, family=kernel_kind(activity, trace.triton_kernels).family))
        )
    return found


def _orphan(activity: Activity, piece: Piece) -> _Call:
    kind: Literal["kernel", "memop"] = "kernel" if activity.kind == "kernel" else "memop"
    return _Call(Work(kind=kind, stream=activity.stream, pieces=(piece,)), 0.0, False)


def _items(
    draft: Draft,
    library: LibraryTerm,
    issue_us: float,
    calls: Sequence[tuple[int | None, _Call]],
    syncs: Mapping[int | None, int],
    floors: Floors,
) -> Iterator[Item]:
    """The step in issue order: what surrounds its places, and the places themselves."""
    spans, sites, graphed = draft.spans, draft.timing.sites, draft.timing.graph_launch_us is not None
    assert spans is not None
    if draft.clock is not None and not graphed:
        site_us = list(draft.clock.site_us)
    else:
        site_us = [spans.sites_us / len(sites)] * len(sites) if sites else []  # none: all was left un-graphed
    # Noise may leave a piece below zero; no place of a step takes less than no time.
    pieces = [max(0.0, us) for us in (*site_us, spans.glue_us, spans.runtime_us or 0.0, spans.around_us or 0.0)]
    scale = issue_us / sum(pieces) if sum(pieces) else 0.0
    *own, glue, runtime, around = (us * scale for us in pieces)
    at: dict[int, list[_Call]] = collections.defaultdict(list)
    behind: dict[int, list[_Place]] = collections.defaultdict(list)
    last, waits, taken = -1, syncs[None], 0.0
    for index, call in calls:
        if index is not None:
            last = max(last, index)
            at[index].append(call)
            continue
        waiting = int(call.awaited and waits > 0)
        waits -= waiting
        taken += call.launch_us + waiting * _idle_wait(call, floors)
        family = call.work.pieces[0].family if call.work.kind != "graph" else GRAPH
        behind[last].append(_Place(call.launch_us, 0.0, [call], waiting, family, None, None))
    places = list(behind[-1])
    for number, site in enumerate(sites):
        ct = library.sites.get(number, 0.0)
        known = site.ops or at[number] or is_wrapper_line(site)
        family = GRAPH if graphed else site_kind(site, "cuda").family if known else BETWEEN
        graph = number if graphed else site.graph
        places.append(_Place(own[number], ct, at[number], syncs[number], family, site.source, graph))
        places += behind[number]
    # What the launches outside recorded calls take lies in the glue or, between graph callables, around those.
    inside = min(glue, taken)
    glue, around = glue - inside, max(0.0, around - (taken - inside))
    outside_ct = (library.total or 0.0) - sum(library.sites.values())
    share = min(1.0, max(0.0, outside_ct) / (glue + around)) if glue + around else 0.0
    parts = list(_surrounded(places, glue, around + runtime, AFTER_SHARE if graphed else None))
    if spans.gaps_us is not None and len(spans.gaps_us) == len(sites) + 1:
        parts = _fitted(parts, spans.gaps_us)
    for part in parts:
        if isinstance(part, _Place):
            yield from _place_items(part, floors)
        elif part.us:
            yield Item(ft_us=part.us * (1 - share), ct_us=part.us * share, family=part.family)


def _surrounded(
    places: Sequence[_Place], glue: float, around: float, tail: float | None
) -> Iterator[_Place | _Surroundings]:
    """The places with the glue between them and what surrounds the graphs, both by convention.

    ``tail``: the share of the glue behind the last place; None: as much as before each.
    """
    behind = 1 / (len(places) + 1) if tail is None or not places else tail
    before = glue * (1 - behind) / len(places) if places else 0.0
    graphs = [place.graph for place in places if place.graph is not None]
    runs = [len(list(run)) for _, run in itertools.groupby(graphs)]  # places of each graph callable
    # One callable is entered before all launches: those of no recorded call, as of copied inputs, it makes itself.
    # Code between several is part of what surrounds them: so are the launches that it makes.
    several = len(runs) > 1
    loose = len(places) - len(graphs) if several else 0
    portion = around / max(1, len(runs) + loose)
    left = iter(runs)
    inside = 0
    if not several:
        yield _Surroundings(portion * (1 - AFTER_SHARE) if runs else around, AROUND)
    for place in places:
        if several and place.graph is None:
            yield _Surroundings(portion, AROUND)
        elif several and not inside:
            inside = next(left)
            yield _Surroundings(portion * (1 - AFTER_SHARE), AROUND)
        yield _Surroundings(before, BETWEEN)
        yield place
        if several and place.graph is not None:
            inside -= 1
            yield _Surroundings(0.0 if inside else portion * AFTER_SHARE, AROUND)
    yield _Surroundings(glue * behind, BETWEEN)
    if runs and not several:
        yield _Surroundings(portion * AFTER_SHARE, AROUND)


def _fitted(parts: Sequence[_Place | _Surroundings], gaps_us: Sequence[float]) -> list[_Place | _Surroundings]:
    """``parts`` with as much between the recorded calls as was clocked there, all alike scaled to the same sum.

    What launches of their own take between two calls is part of the gap there.
    """
    gaps: list[list[_Place | _Surroundings]] = [[]]
    calls: list[_Place] = []
    for part in parts:
        if isinstance(part, _Place) and part.graph is not None:
            calls.append(part)
            gaps.append([])
        else:
            gaps[-1].append(part)
    planned = [sum(part.us for part in gap if isinstance(part, _Surroundings)) for gap in gaps]
    launches = [sum(part.own_us for part in gap if isinstance(part, _Place)) for gap in gaps]
    total = sum(planned)
    scale = (total + sum(launches)) / clocked if (clocked := sum(max(0.0, us) for us in gaps_us)) else 0.0
    known = [max(0.0, max(0.0, us) * scale - own) for us, own in zip(gaps_us, launches, strict=True)]
    scale = total / sum(known) if sum(known) else 0.0
    found: list[_Place | _Surroundings] = []
    for index, gap in enumerate(gaps):
        us = known[index] * scale
        if not planned[index]:
            found.append(_Surroundings(us, BETWEEN))
        for part in gap:
            if isinstance(part, _Surroundings):
                part = _Surroundings(part.us * us / planned[index] if planned[index] else 0.0, part.family)
            found.append(part)
        found += calls[index : index + 1]
    return found


def _place_items(place: _Place, floors: Floors) -> Iterator[Item]:
    """One place: its own time before each of its launches and behind them, and the host waiting for its copies.

    Its time on an idle device contains the wait for such a copy, which the simulation adds: that is taken out.
    """
    calls, waits = place.calls, place.syncs
    awaited = [call.awaited and (waits := waits - 1) >= 0 for call in calls]
    waits = max(0, waits)
    launch_us = min(place.own_us, sum(call.launch_us for call in calls))
    scale = launch_us / total if (total := sum(call.launch_us for call in calls)) else 0.0
    idle = sum(_idle_wait(call, floors) for call, waited in zip(calls, awaited, strict=True) if waited)
    rest = max(0.0, place.own_us - launch_us - idle - waits * floors.sync_us)
    ct = min(rest, max(0.0, place.ct_us))
    # The latency of a graph launch counts from the entry of the call around it.
    graph = any(call.work.kind == "graph" for call in calls)
    before = 0.0 if graph or not calls else (1 - RETURN_SHARE) / len(calls)
    for call, waited in zip(calls, awaited, strict=True):
        work = call.work
        if work.kind != "graph":  # host and device time of one call belong to one family
            work = msgspec.structs.replace(work, pieces=(Piece(us=work.pieces[0].us, family=place.family),))
        yield Item(
            ft_us=(rest - ct) * before,
            ct_us=ct * before,
            launch_us=call.launch_us * scale,
            action=work,
            family=place.family,
            source=place.source,
        )
        if waited:
            yield Item(action=Sync(stream=work.stream), family=place.family, source=place.source)
    behind = 1 - before * len(calls)
    if rest:
        yield Item(ft_us=(rest - ct) * behind, ct_us=ct * behind, family=place.family, source=place.source)
    for _ in range(waits):
        yield Item(action=Sync(), family=place.family, source=place.source)


def _idle_wait(call: _Call, floors: Floors) -> float:
    """How long the simulation makes the host wait for an awaited copy on an idle device."""
    return floors.latency_us + sum(piece.us for piece in call.work.pieces) + floors.sync_us
