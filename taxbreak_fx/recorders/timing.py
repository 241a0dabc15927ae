"""The stage of a variant that no profiler sees: what it costs the host, call by call, and whether its outputs hold.

In this order: wall and host times in pairs with eager; in-situ times of the step's calls, by clock reads in its code
where that can be had (``reach_sites``); on CUDA library calls, launches and waits at the import tables; hot replays;
the output check; and of a graphed variant, once it is released, how long after its launch each graph begins.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.capture import CapturedCall, OpRecorder, RecordProbe, find_ticks, record_eager
from taxbreak_fx.errors import CaptureError, MeasurementError, TaxbreakError
from taxbreak_fx.host_reference import reference_us
from taxbreak_fx.launch_path import Kernel, LaunchLoop, reason_of
from taxbreak_fx.observe import Label
from taxbreak_fx.probes import CountProbe, Probe
from taxbreak_fx.recorders.bench import Bench, one_line, quiet_gc
from taxbreak_fx.recorders.graph_launch import time_graph_launches
from taxbreak_fx.recorders.graph_span import time_graph_spans
from taxbreak_fx.recorders.in_situ import in_situ
from taxbreak_fx.recorders.library import time_libraries
from taxbreak_fx.recorders.outputs import OutputReference
from taxbreak_fx.recording import InSitu, LibraryTimes, Replay, Site, Spans, Timing
from taxbreak_fx.replay import replay_all, replay_smallest
from taxbreak_fx.ticks import Ticks
from taxbreak_fx.variants import Built

NULL_LAUNCHES, REFERENCE_ROUNDS = 60, 5  # before the pairs, and after them
TOLD_FAULTS = 20  # pages that a clocked step gets more than a plain one: some 50 to 300 µs


class Captured:
    """The sites of a variant's step and its unique calls with real arguments."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.calls: dict[str, CapturedCall] = {}
        self.leaves: dict[str, CapturedCall] = {}


def reach_sites(bench: Bench, built: Built) -> None:
    """Clock the sites in the code itself: the uncompiled step's, a captured graph's, Inductor's wrapper's.

    Where that cannot be done, the slower mechanism of the variant stays, with a note.
    """
    if built.graphed or built.ticks is not None:
        return
    slower = built.mechanism
    try:
        if built.uncompiled:
            _tick_step(bench, built)
        else:
            _tick_code(bench, built)
    except Exception as error:  # Dynamo's tools are private: whatever they raise costs the better clock only
        built.tick(None, slower)
        why = str(error) if isinstance(error, TaxbreakError) else one_line(error)
        built.notes.append(f"in-situ times come by {slower}, whose cost is known only roughly: {why}")
    bench.sync()
    bench.snapshot.restore()


def _tick_step(bench: Bench, built: Built) -> None:
    run, roots = bench.workload.run, bench.roots
    bench.snapshot.restore()
    with torch.no_grad():
        ticks = find_ticks(run, roots)
    bench.snapshot.restore()
    record_eager(run, roots, set(), True, ticks=ticks)  # raises when an op is dispatched beside all ticks
    built.tick(ticks)


def _tick_code(bench: Bench, built: Built) -> None:
    labels: list[Label] = []
    _observed_step(bench, built, CountProbe(), labels)
    built.tick(Ticks(built.spots(labels)))
    count = CountProbe()
    _observed_step(bench, built, count, None)
    if count.count != len(labels):
        raise CaptureError(f"{len(labels)} calls of the generated code stand in {count.count} places")


def _observed_step(bench: Bench, built: Built, probe: Probe, labels: list[Label] | None) -> None:
    bench.snapshot.restore()
    built.prepare()
    with torch.no_grad(), built.observe(probe, labels):
        built.call()
    bench.sync()


def capture_sites(bench: Bench, built: Built) -> Captured:
    """Record the step once (twice for eager: composite ops, then leaf ops) and keep one call per unique signature.

    Raises ``MeasurementError`` when two eager passes meet different calls.
    """
    captured = Captured()
    shared = bench.snapshot.storages
    if built.uncompiled:
        passes: list[OpRecorder] = []
        for inference in (True, False):
            bench.snapshot.restore()
            calls, leaves = (None, None) if inference else (captured.calls, captured.leaves)
            run, roots = bench.workload.run, bench.roots
            passes.append(record_eager(run, roots, shared, inference, calls, leaves, built.ticks))
        composite, leaf = (recorder.sites for recorder in passes)
        if [site.label.target for site in composite] != [site.label.target for site in leaf]:
            raise MeasurementError("two passes of the step met different calls: its work depends on data or on chance")
        pairs = list(zip(composite, leaf, strict=True))
    else:
        labels: list[Label] = []
        recorder = OpRecorder(captured.leaves, shared)
        bench.snapshot.restore()
        built.prepare()
        with torch.no_grad(), built.observe(RecordProbe(recorder, labels), labels, None if built.graphed else recorder):
            built.call()
        pairs = [(site, site) for site in recorder.sites]
    bench.sync()
    bench.snapshot.restore()
    captured.sites = [
        Site(
            target=top.label.target,
            ops=tuple(top.ops),
            source=top.label.source,
            module_path=top.label.module_path,
            graph=top.label.graph,
            dtype=low.dtype,
            call_key=low.call_key,
            leaf_keys=tuple(low.leaf_keys),
        )
        for top, low in pairs
    ]
    return captured


def time_variant(bench: Bench, name: str, reference: OutputReference) -> Timing:
    """Build ``name`` and measure it beside eager.  What fails after the pairs is recorded with its reason.

    Errors of building or running the variant itself pass through: they cost the variant.
    """
    built, compile_s = bench.build(name)
    if name not in ("eager", "eager-graph") and not built.graphs:
        built.notes.append("nothing was compiled: Dynamo captured no graph, so the step ran as it is")
    try:
        timing = time_built(bench, name, built, None if name == "eager" else compile_s, reference, hot_replays)
    finally:
        built.release()
    # Only now: a twin's release would take what it shares with the variant, Dynamo's cache and the pool of the graphs.
    return time_graph_launches(bench, timing) if built.graphed else timing


def time_built(
    bench: Bench,
    name: str,
    built: Built,
    compile_s: float | None,
    reference: OutputReference,
    replay: Callable[[Any, Captured], list[Replay]],
) -> Timing:
    """As ``time_variant``, of a variant that is built already; ``replay`` makes the hot replays of what it captured."""
    peak = _peak_memory(bench, built)
    before, launches = bench.preempted, null_launches_us(bench.device, built.notes)
    score = reference_us(REFERENCE_ROUNDS)
    rows = bench.pairs(built)
    preempted = bench.preempted - before
    score += reference_us(REFERENCE_ROUNDS)
    launches += null_launches_us(bench.device, built.notes)
    wall, host, base_wall, base_host = (list(column) for column in zip(*rows, strict=True))
    failure: str | None = None
    clocked: InSitu | None = None
    drained: InSitu | None = None
    captured = Captured()
    spans: Spans | None = None
    graph_us: float | None = None
    try:
        reach_sites(bench, built)
        captured = capture_sites(bench, built)
        spans, clocked, drained = in_situ(bench, built, len(captured.sites))
        if spans.faults is not None:
            plain, own = spans.faults
            if abs(own - plain) >= max(TOLD_FAULTS, 0.1 * plain):
                built.notes.append(
                    f"a step got {plain:g} pages of memory from the system, one with clock reads in it {own:g}: "
                    "the times of the two differ for it"
                )
        if built.graphed:
            failure = "a CUDA graph is one launch: it has no host time per node"
            clocked, graph_us = None, spans.sites_us
    except TaxbreakError as error:
        failure = str(error)
    except Exception as error:  # the step runs, but not under our observation: the pairs above stay valid
        failure = one_line(error)
        bench.snapshot.restore()
    library, library_failure = _libraries(bench, built, len(captured.sites), failure is None or spans is not None)
    graph_spans, graph_span_failure = time_graph_spans(bench, built) if built.graphed else (None, None)
    with quiet_gc():
        replays = replay(bench, captured)
    check, check_failure = reference.check(name, lambda: bench.step(built))
    return Timing(
        variant=name,
        wall_us=wall,
        host_us=host,
        base_wall_us=base_wall,
        base_host_us=base_host,
        preempted=preempted,
        launch_us=statistics.median(launches) if launches else None,
        reference_us=score,
        compile_s=compile_s,
        peak_memory_bytes=peak,
        sites=captured.sites,
        spans=spans,
        in_situ=clocked,
        drained=drained,
        in_situ_failure=failure,
        library=library,
        library_failure=library_failure,
        replays=replays,
        graph_launch_us=graph_us,
        graph_span_us=graph_spans,
        graph_span_failure=graph_span_failure,
        output_check=check,
        output_failure=check_failure,
        output_floor=reference.floor,
        graphs=built.graphs,
        graph_skips=built.graph_skips,
        notes=list(dict.fromkeys(built.notes)),
    )


def null_launches_us(device: str, notes: list[str]) -> list[float]:
    """What a null kernel's launch call costs now, call by call, in microseconds; none, and why in ``notes``, where no
    loop in C can tell.

    Hosts change speed between the calibration and a variant (H200, 2026-11-23: 2.8 and 4.1 µs on one machine), and a
    launch that a library makes unheard has to be subtracted at the speed at which the library was timed.
    """
    if device != "cuda":
        return []
    try:
        loop, kernel = _null_kernel()
        return loop.host_us(kernel, NULL_LAUNCHES, NULL_LAUNCHES)
    except Exception as error:  # no compiler, no Triton, no driver: a launch costs as calibrated
        notes.append(f"launches cost as calibrated: {reason_of(error)}")
        return []


@functools.cache
def _null_kernel() -> tuple[LaunchLoop, Kernel]:
    from taxbreak_fx.null_kernel import null_image  # imports Triton

    loop = LaunchLoop()
    return loop, loop.kernel(null_image(), torch.cuda.current_stream().cuda_stream)


def _libraries(bench: Bench, built: Built, sites: int, observable: bool) -> tuple[LibraryTimes | None, str | None]:
    """Library calls and blocking calls of the step, or the reason there are none."""
    if bench.device != "cuda":
        return None, "the CPU device: no vendor library of a GPU is called"
    if not observable:
        return None, "the step's sites could not be clocked"
    try:
        return time_libraries(bench, built, sites), None
    except Exception as error:  # as above: the step runs, but not while it is listened to
        bench.snapshot.restore()
        return None, str(error) if isinstance(error, TaxbreakError) else one_line(error)


def hot_replays(bench: Bench, captured: Captured) -> list[Replay]:
    """Hot-loop host times of every captured call and leaf; on the CPU also of every leaf at its smallest shape."""
    replays = replay_all(captured.calls.values(), "call", bench.sync)
    replays += replay_all(captured.leaves.values(), "leaf", bench.sync)
    if bench.device == "cpu":
        replays += replay_smallest(captured.leaves.values())
    bench.snapshot.restore()
    return replays


def _peak_memory(bench: Bench, built: Built) -> int | None:
    if bench.device != "cuda":
        return None
    with torch.no_grad():
        torch.cuda.reset_peak_memory_stats()
        bench.step(built)
    return torch.cuda.max_memory_allocated()
