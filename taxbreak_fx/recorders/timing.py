"""The un-instrumented stage of a variant: paired wall and host times, in-situ times, hot replays, outputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.capture import CapturedCall, OpRecorder, RecordProbe, record_eager
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.observe import Label
from taxbreak_fx.probes import ClockProbe
from taxbreak_fx.recorders.bench import Bench, one_line, quiet_gc
from taxbreak_fx.recorders.in_situ import CLOCKED_STEPS, in_situ, observation_cost_us
from taxbreak_fx.recorders.outputs import OutputReference
from taxbreak_fx.recording import InSitu, Replay, Site, Timing
from taxbreak_fx.replay import replay_all, replay_smallest
from taxbreak_fx.variants import Built


class Captured:
    """The sites of a variant's step and its unique calls with real arguments."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.calls: dict[str, CapturedCall] = {}
        self.leaves: dict[str, CapturedCall] = {}


def capture_sites(bench: Bench, built: Built) -> Captured:
    """Record the step once (twice for eager: composite ops, then leaf ops) and keep one call per unique signature.

    Raises ``MeasurementError`` when two eager passes meet different calls.
    """
    captured = Captured()
    shared = bench.snapshot.storages
    if built.mechanism == "function mode":
        passes: list[OpRecorder] = []
        for inference in (True, False):
            bench.snapshot.restore()
            calls, leaves = (None, None) if inference else (captured.calls, captured.leaves)
            passes.append(record_eager(bench.workload.run, bench.roots, shared, inference, calls, leaves))
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
        return time_built(bench, name, built, None if name == "eager" else compile_s, reference, hot_replays)
    finally:
        built.release()


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
    rows = bench.pairs(built)
    wall, host, base_wall, base_host = (list(column) for column in zip(*rows, strict=True))
    failure: str | None = None
    clocked: InSitu | None = None
    drained: InSitu | None = None
    captured = Captured()
    graph_us: float | None = None
    try:
        captured = capture_sites(bench, built)
        if built.graphed:
            failure = "a CUDA graph is one launch: it has no host time per node"
            graph_us = graph_launch_us(bench, built)
        else:
            clocked = in_situ(bench, built, len(captured.sites), drained=False)
            if bench.device == "cuda":
                drained = in_situ(bench, built, len(captured.sites), drained=True)
    except MeasurementError as error:
        failure = str(error)
    except Exception as error:  # the step runs, but not under our observation: the pairs above stay valid
        failure = one_line(error)
        bench.snapshot.restore()
    with quiet_gc():
        replays = replay(bench, captured)
    check, check_failure = reference.check(name, lambda: bench.step(built))
    return Timing(
        variant=name,
        wall_us=wall,
        host_us=host,
        base_wall_us=base_wall,
        base_host_us=base_host,
        compile_s=compile_s,
        peak_memory_bytes=peak,
        sites=captured.sites,
        in_situ=clocked,
        drained=drained,
        in_situ_failure=failure,
        replays=replays,
        graph_launch_us=graph_us,
        output_check=check,
        output_failure=check_failure,
        output_floor=reference.floor,
        graphs=built.graphs,
        notes=list(dict.fromkeys(built.notes)),
    )


def hot_replays(bench: Bench, captured: Captured) -> list[Replay]:
    """Hot-loop host times of every captured call and leaf; on the CPU also of every leaf at its smallest shape."""
    replays = replay_all(captured.calls.values(), "call", bench.sync)
    replays += replay_all(captured.leaves.values(), "leaf", bench.sync)
    if bench.device == "cpu":
        replays += replay_smallest(captured.leaves.values())
    bench.snapshot.restore()
    return replays


def graph_launch_us(bench: Bench, built: Built) -> float:
    """Host time of the step's graph launches in microseconds, device idle before the step, clock cost removed."""
    inside, _ = observation_cost_us("generated")
    sums = []
    with torch.no_grad(), quiet_gc():
        for number in range(CLOCKED_STEPS + 1):
            probe = ClockProbe()
            bench.snapshot.restore()
            built.prepare()
            bench.sync()
            with built.observe(probe):
                output = built.call()
            bench.sync()
            del output
            if number:
                site_us, _ = probe.split()
                sums.append(sum(site_us) - inside * len(site_us))
    return statistics.median(sums)


def _peak_memory(bench: Bench, built: Built) -> int | None:
    if bench.device != "cuda":
        return None
    with torch.no_grad():
        torch.cuda.reset_peak_memory_stats()
        bench.step(built)
    return torch.cuda.max_memory_allocated()
