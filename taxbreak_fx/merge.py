"""Several captured graphs as one step: the recordings of one variant, each of one graph, become one recording.

Pure.  Times of like repetitions are added, lists are laid end to end with their indices moved, and a stage that is
missing for one graph is missing for the whole, with that graph's reason: a sum over some graphs is no sum.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from taxbreak_fx.decompose import ERROR_RATIO, equal_outputs
from taxbreak_fx.recording import (
    Activity,
    InSitu,
    Launch,
    LibraryTimes,
    Recording,
    Replay,
    ReplayTrace,
    Spans,
    Timing,
    Trace,
    TracedStep,
)
from taxbreak_fx.variant_record import OutputCheck

T = TypeVar("T")
R = TypeVar("R", Replay, ReplayTrace)


def merge(recordings: Sequence[Recording]) -> Recording:
    """One recording of all the graphs, in the order given.

    Raises ``ValueError`` without recordings, or when they are not of one variant on one device.
    """
    if not recordings:
        raise ValueError("nothing to merge")
    first = recordings[0]
    if any((other.variant, other.device) != (first.variant, first.device) for other in recordings):
        raise ValueError("recordings of different variants or devices cannot be merged")
    failures = dict(first.failures)
    for recording in reversed(recordings):
        failures.update(recording.failures)
    timings = [recording.timing for recording in recordings if recording.timing is not None]
    traces = [recording.trace for recording in recordings if recording.trace is not None]
    return msgspec.structs.replace(
        first,
        timing=merge_timings(timings) if len(timings) == len(recordings) else None,
        trace=merge_traces(traces) if len(traces) == len(recordings) else None,
        failures=failures,
    )


def merge_timings(timings: Sequence[Timing]) -> Timing:
    """Repetition k of the whole is the sum of every graph's repetition k, as far as all of them go."""
    check, failure, floor = _outputs(timings)
    clocks = _all([timing.in_situ for timing in timings])
    drained = _all([timing.drained for timing in timings])
    spans = _all([timing.spans for timing in timings])
    compile_s = _all([timing.compile_s for timing in timings])
    nulls = _all([timing.launch_us for timing in timings])
    peaks = _all([timing.peak_memory_bytes for timing in timings])
    launches = _all([timing.graph_launch_us for timing in timings])
    first_nodes = _all([timing.graph_first_node_us for timing in timings])
    graph_spans = _all([timing.graph_span_us for timing in timings])
    sites, ordinal = [], 0
    for timing in timings:
        sites += [msgspec.structs.replace(site, graph=ordinal + site.graph) for site in timing.sites]
        ordinal += max([1, *(site.graph for site in timing.sites)])
    return Timing(
        variant=timings[0].variant,
        wall_us=_added([timing.wall_us for timing in timings]),
        host_us=_added([timing.host_us for timing in timings]),
        base_wall_us=_added([timing.base_wall_us for timing in timings]),
        base_host_us=_added([timing.base_host_us for timing in timings]),
        preempted=sum(timing.preempted for timing in timings),
        launch_us=None if nulls is None else statistics.fmean(nulls),
        reference_us=[us for timing in timings for us in timing.reference_us],
        compile_s=None if compile_s is None else sum(compile_s),
        peak_memory_bytes=None if peaks is None else max(peaks),
        sites=sites,
        spans=None if spans is None else _spans(spans),
        in_situ=None if clocks is None else _clock(clocks),
        drained=None if drained is None else _clock(drained),
        library=_libraries(timings),
        library_failure=next((timing.library_failure for timing in timings if timing.library_failure), None),
        in_situ_failure=_in_situ_failure(timings),
        replays=_unique(replay for timing in timings for replay in timing.replays),
        graph_launch_us=None if launches is None else sum(launches),
        graph_first_node_us=None if first_nodes is None else [us for one in first_nodes for us in one],
        graph_first_node_failure=next(
            (t.graph_first_node_failure for t in timings if t.graph_first_node_failure), None
        ),
        graph_span_us=None if graph_spans is None else [us for one in graph_spans for us in one],
        graph_span_failure=next((t.graph_span_failure for t in timings if t.graph_span_failure), None),
        output_check=check,
        output_failure=failure,
        output_floor=floor,
        graphs=[graph for timing in timings for graph in timing.graphs],
        graph_skips=[skip for timing in timings for skip in timing.graph_skips],
        notes=list(dict.fromkeys(note for timing in timings for note in timing.notes)),
    )


def merge_traces(traces: Sequence[Trace]) -> Trace:
    """The traced steps one after the other on one time line; no activity of one overlaps one of another."""
    calls = _all([trace.library_calls for trace in traces])
    return Trace(
        variant=traces[0].variant,
        step=_steps([trace.step for trace in traces]),
        graph_latency_us=[latency for trace in traces for latency in trace.graph_latency_us],
        library_calls=None if calls is None else _counted(calls),
        library_failure=next((trace.library_failure for trace in traces if trace.library_failure), None),
        replays=_unique(replay for trace in traces for replay in trace.replays),
        triton_kernels=sorted({name for trace in traces for name in trace.triton_kernels}),
        notes=list(dict.fromkeys(note for trace in traces for note in trace.notes)),
    )


def _steps(steps: Sequence[TracedStep]) -> TracedStep:
    activities: list[Activity] = []
    launches: list[Launch] = []
    syncs: list[tuple[str, int | None]] = []
    sites, end = 0, 0.0
    for step in steps:
        begin = min((activity.start_us for activity in step.activities), default=0.0)
        shift, before = end - begin, len(launches)
        for activity in step.activities:
            launch = None if activity.launch is None else before + activity.launch
            start = activity.start_us + shift
            activities.append(
                msgspec.structs.replace(activity, start_us=start, launch=launch, site=_moved(activity.site, sites))
            )
            end = max(end, start + activity.duration_us)
        launches += [msgspec.structs.replace(launch, site=_moved(launch.site, sites)) for launch in step.launches]
        syncs += [(api, _moved(site, sites)) for api, site in step.syncs]
        sites += step.sites
    queues = _all([step.deepest_queue for step in steps])
    return TracedStep(
        activities=activities,
        launches=launches,
        syncs=syncs,
        sites=sites,
        deepest_queue=None if queues is None else max(queues),  # each graph was traced on a drained queue
    )


def _moved(site: int | None, by: int) -> int | None:
    return None if site is None else site + by


def _clock(clocks: Sequence[InSitu]) -> InSitu:
    return InSitu(
        drained=clocks[0].drained,
        site_us=[us for clock in clocks for us in clock.site_us],
        host_us=sum(clock.host_us for clock in clocks),
        probe_us=statistics.fmean(clock.probe_us for clock in clocks),
        steps=min(clock.steps for clock in clocks),
    )


def _in_situ_failure(timings: Sequence[Timing]) -> str | None:
    """The reason of a graph that could not be clocked before that of one that has no node times by its nature."""
    failed = sorted((t for t in timings if t.in_situ_failure), key=lambda timing: timing.spans is not None)
    return failed[0].in_situ_failure if failed else None


def _spans(spans: Sequence[Spans]) -> Spans:
    """The sums; a graph that has nothing around it, or no code of Inductor's, adds nothing there."""
    around, runtime = (
        [us for one in spans if (us := getattr(one, name)) is not None] for name in ("around_us", "runtime_us")
    )
    return Spans(
        around_us=sum(around) if around else None,
        runtime_us=sum(runtime) if runtime else None,
        glue_us=sum(one.glue_us for one in spans),
        sites_us=sum(one.sites_us for one in spans),
        host_us=sum(one.host_us for one in spans),
    )


def _libraries(timings: Sequence[Timing]) -> LibraryTimes | None:
    """The places of all graphs, sites renumbered as they are laid end to end; None when one graph lacks them."""
    found = _all([timing.library for timing in timings])
    if found is None:
        return None
    places, before = [], 0
    for times, timing in zip(found, timings, strict=True):
        places += [msgspec.structs.replace(place, site=_moved(place.site, before)) for place in times.sites]
        before += len(timing.sites)
    return LibraryTimes(
        sites=places,
        host_us=sum(times.host_us for times in found),
        cost_us=statistics.fmean(times.cost_us for times in found),
        unpriced=sorted({name for times in found for name in times.unpriced}),
    )


def _outputs(timings: Sequence[Timing]) -> tuple[OutputCheck | None, str | None, float]:
    """The check of the graph that is worst against its own bound, with the flips of all; null if one lacks a check.

    One graph whose outputs differ decides, whatever is unknown of the others.
    """
    checked = [(timing.output_check, timing.output_floor) for timing in timings if timing.output_check is not None]
    missing = next((timing for timing in timings if timing.output_check is None), None)
    wrong = any(not equal_outputs(check, floor) for check, floor in checked)
    if not checked or (missing is not None and not wrong):
        return None, missing.output_failure if missing else None, timings[0].output_floor
    worst, floor = max(checked, key=lambda item: _severity(*item))
    flips = sum(check.top1_flips for check, _ in checked)
    total = sum(check.top1_total for check, _ in checked)
    return msgspec.structs.replace(worst, top1_flips=flips, top1_total=total), None, floor


def _severity(check: OutputCheck, floor: float) -> float:
    return check.variant_error / max(ERROR_RATIO * check.eager_error, floor)


def _added(series: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*series, strict=False)]


def _counted(calls: Sequence[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for counts in calls for name in counts)
    return {name: sum(counts.get(name, 0) for counts in calls) for name in names}


def _unique(replays: Iterable[R]) -> list[R]:
    """One replay per level and key, the first that did not fail if there is one."""
    found: dict[tuple[str, str], R] = {}
    for replay in replays:
        place = (replay.level, replay.key)
        if place not in found or (found[place].failure is not None and replay.failure is None):
            found[place] = replay
    return list(found.values())


def _all(values: Sequence[T | None]) -> list[T] | None:
    """The values, or None when one of them is missing."""
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else None
