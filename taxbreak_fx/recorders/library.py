"""Direct ΔCT and blocked time: the step's calls into vendor libraries and its synchronisations, timed where they enter.

The import tables of the loaded libraries are patched for these passes only (``interpose``); no profiler is on.  The
same passes clock the sites, so that every call is known to lie in one of them, or in none.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.interpose import Interposer
from taxbreak_fx.library_events import Cost, LibraryEvent, enclosed, is_library, library_charges, net_us
from taxbreak_fx.probes import ClockProbe
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recording import LibrarySite, LibraryTimes
from taxbreak_fx.variants import Built

PASSES = 8
STEPS = 2 * (PASSES + 1) + 2  # a plain step around every pass, one more pass to warm the stubs, one step to load all
_IDLE_CALLS = 20


@dataclass
class _Place:
    """What one place of the step holds, in one pass: a site, or the rest inside or outside the graph callables."""

    own_us: float = 0.0
    blocked_us: float = 0.0
    calls: int = 0
    heard_inside: int = 0
    launches: int = 0
    launch_us: float = 0.0
    graph_us: float = 0.0
    unpriced: set[str] = field(default_factory=set)


OUTSIDE, AROUND = -1, -2  # beside the sites' own numbers: inside a graph callable, and outside all of them


def time_libraries(bench: Bench, built: Built, sites: int) -> LibraryTimes:
    """Time the step's library calls and synchronisations (CUDA), ``sites`` sites by the recording pass.

    Raises ``MeasurementError`` where calls cannot be interposed, when a known matrix product is not heard, and when
    a pass meets another number of sites or more calls than there is room for.
    """
    interposer = Interposer()
    passes: list[dict[int, _Place]] = []
    plain: list[float] = []
    try:
        interposer.control()
        cost = interposer.cost_us()
        idle = _idle_us(interposer, cost)
        with torch.no_grad():
            bench.step(built)
        interposer.install()  # once more: what the step loaded
        with torch.no_grad(), quiet_gc():
            for number in range(PASSES + 1):
                plain.append(bench.timed(built)[1])
                places = _pass(bench, built, interposer, sites, cost, idle)
                if number:  # the first warms the stubs
                    passes.append(places)
            plain.append(bench.timed(built)[1])
    finally:
        interposer.close()
    speeds = [(before + after) / 2 for before, after in itertools.pairwise(plain[1:])]
    host = statistics.median(speeds)
    scales = [host / speed for speed in speeds]
    found = [_site(number, [one.get(number) for one in passes], scales) for number in sorted(set().union(*passes))]
    unpriced = sorted({name for places in passes for place in places.values() for name in place.unpriced})
    return LibraryTimes(sites=found, host_us=host, cost_us=sum(cost), unpriced=unpriced)


def _site(number: int, places: Sequence[_Place | None], scales: Sequence[float]) -> LibrarySite:
    """One place over all passes: middle-half means of times, at one host speed; the counts of the last pass.

    Raises ``MeasurementError`` when passes differ in their calls.
    """
    held = [place or _Place() for place in places]

    def mean(of: Callable[[_Place], float]) -> float:
        return _mean([of(place) * scale for place, scale in zip(held, scales, strict=True)])

    if len({(place.calls, place.heard_inside, place.launches) for place in held}) != 1:
        raise MeasurementError("two passes of the step made different library calls: its work depends on data")
    last = held[-1]
    return LibrarySite(
        site=number if number >= 0 else None,
        around=number == AROUND,
        own_us=mean(lambda place: place.own_us),
        blocked_us=mean(lambda place: place.blocked_us),
        calls=last.calls,
        launches_inside=last.heard_inside,
        launches_beside=last.launches - last.heard_inside,
        launch_us=mean(lambda place: place.launch_us),
        graph_us=mean(lambda place: place.graph_us),
    )


def _mean(values: list[float]) -> float:
    ordered, quarter = sorted(values), len(values) // 4
    return statistics.fmean(ordered[quarter : len(ordered) - quarter])


def _pass(
    bench: Bench, built: Built, interposer: Interposer, sites: int, cost: Cost, idle: dict[str, float]
) -> dict[int, _Place]:
    probe = ClockProbe()
    bench.snapshot.restore()
    built.prepare()
    bench.sync()
    with built.observe(probe), interposer.listening() as heard:
        started = time.perf_counter_ns()
        output = built.call()
        ended = time.perf_counter_ns()
    bench.sync()
    del output
    if heard.overflow:
        raise MeasurementError("the step makes more library calls than can be recorded")
    if len(probe.stamps) != 2 * sites:
        raise MeasurementError(
            f"the step met {len(probe.stamps) // 2} calls in one pass and {sites} in another: its work depends on data"
        )
    events = [event for event in heard.events if started / 1e3 <= event.start_us <= ended / 1e3]
    return _placed(events, probe, cost, idle)


def _placed(events: Sequence[LibraryEvent], probe: ClockProbe, cost: Cost, idle: dict[str, float]) -> dict[int, _Place]:
    """Library time, blocked time and launches by the place of the step in which they began."""
    places: dict[int, _Place] = collections.defaultdict(_Place)

    def place(us: float) -> _Place:
        at = bisect.bisect_right(probe.stamps, us * 1e3)
        if at % 2:
            return places[at // 2]
        return places[OUTSIDE if not probe.graphs or bisect.bisect_right(probe.graphs, us * 1e3) % 2 else AROUND]

    for charge in library_charges(events, cost):
        held = place(charge.start_us)
        held.own_us += charge.own_us
        held.calls += charge.working
        held.heard_inside += charge.launches
    net = net_us(events, cost)
    launches = [event.library == "launch" for event in events]
    again = enclosed(events, launches)  # ``cudaLaunchKernel`` may come back through an import table
    blocking = [_may_block(event, after) for event, after in zip(events, [*events[1:], None], strict=True)]
    still = enclosed(events, blocking)
    in_library = enclosed(events, [is_library(event) for event in events])
    for index, event in enumerate(events):
        if launches[index] and not again[index]:
            held = place(event.start_us)
            if "Graph" in event.name:
                held.graph_us += net[index]
            else:
                held.launches += 1
                held.launch_us += net[index]
        elif blocking[index] and not still[index]:
            held, blocked = place(event.start_us), net[index] - idle.get(event.name, 0.0)
            if event.name not in idle:
                held.unpriced.add(event.name)
            held.blocked_us += blocked
            held.own_us -= blocked if in_library[index] else 0.0  # waiting is T_wait, not library time
    return places


def _may_block(event: LibraryEvent, after: LibraryEvent | None) -> bool:
    """A synchronisation, or the copy to pageable memory that torch makes just before one."""
    if event.library == "sync" or event.name == "cudaMemcpy":
        return True
    follows = after is not None and after.thread == event.thread and after.library == "sync"
    return follows and event.name == "cudaMemcpyAsync"


def _idle_us(interposer: Interposer, cost: Cost) -> dict[str, float]:
    """What each blocking call costs on an idle device, in µs, by its name."""
    x = torch.zeros(1, device="cuda")
    moment = torch.cuda.Event()
    durations: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(_IDLE_CALLS):
        moment.record()
        torch.cuda.synchronize()
        with interposer.listening() as heard:
            x.item()
            moment.synchronize()
            torch.cuda.current_stream().synchronize()
            torch.cuda.synchronize()
        for event in heard.events:
            durations[event.name].append(event.us - cost.inside)
    return {name: statistics.median(us) for name, us in durations.items()}
