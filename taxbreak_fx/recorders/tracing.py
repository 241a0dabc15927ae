"""The traced stage of a variant: torch.profiler gives counts, kernel identities and device times, never host times.

The profiler leaves its process slower, so every variant is timed before the first one is traced.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from taxbreak_fx import calibrate, trace
from taxbreak_fx.capture import CapturedCall
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.library_calls import count_library_calls
from taxbreak_fx.probes import RANGE, STEP, Probe, RangeProbe
from taxbreak_fx.recorders.bench import Bench, one_line
from taxbreak_fx.recorders.timing import capture_sites, reach_sites
from taxbreak_fx.recording import LaunchFloor, ReplayTrace, Trace, TracedStep
from taxbreak_fx.variants import Built

TRACED_STEPS = 3
REPLAY = "taxbreak.replay."
_REPLAY_REPEATS = 5


def trace_variant(bench: Bench, name: str) -> Trace:
    """Build ``name`` and trace it (CUDA only).  Raises ``MeasurementError`` when the profiler returns no kernel."""
    built, _ = bench.build(name)
    try:
        return trace_built(bench, name, built)
    finally:
        built.release()


def trace_built(bench: Bench, name: str, built: Built) -> Trace:
    """As ``trace_variant``, of a variant that is built already."""
    reach_sites(bench, built)
    calls, failure = _library_calls(bench, built)
    steps = trace_steps(bench, built)
    chosen, notes = agreed(steps)
    captured = capture_sites(bench, built)
    replays = [] if built.graphed else trace_replays(bench, captured.calls.values(), "call")
    replays += [] if built.graphed else trace_replays(bench, captured.leaves.values(), "leaf")
    graphed = any(launch.kind == "graph" for launch in chosen.launches)
    latency = _graph_latency(bench, built) if graphed else []
    bench.snapshot.restore()
    return Trace(
        variant=name,
        step=chosen,
        graph_latency_us=latency,
        library_calls=calls,
        library_failure=failure,
        replays=replays,
        triton_kernels=triton_kernels(),
        notes=notes,
    )


def triton_kernels() -> list[str]:
    """Names of the Triton kernels that loaded modules define, wrapped by an autotuner or not; [] without Triton."""
    jit = sys.modules.get("triton.runtime.jit")
    if jit is None:
        return []
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("triton", "torch"):
            continue  # their own device functions
        for value in list(getattr(module, "__dict__", {}).values()):
            # type() and not isinstance(): a lazy object's __class__ may import or warn.
            while str(type(value).__module__).startswith("triton.runtime") and type(value) is not jit.JITFunction:
                value = getattr(value, "fn", None)  # @triton.autotune and @triton.heuristics wrap the kernel
            if type(value) is jit.JITFunction:
                found.add(str(value.__name__))
    return sorted(found)


def profiled(run: Callable[[], None]) -> list[dict[str, Any]]:
    """The events of ``run`` under torch.profiler with CPU and CUDA activities."""
    handle, path = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
            run()
        profiler.export_chrome_trace(path)
        with open(path, "rb") as file:
            return trace.read_events(file.read(), "the profiler's own trace")
    finally:
        os.unlink(path)


def traced_floor() -> LaunchFloor:
    """The launch floor of this machine, by torch.profiler (CUDA)."""
    return calibrate.launch_floor(
        lambda run: trace.kernel_latencies(profiled(run)), lambda run: trace.kernel_durations(profiled(run))
    )


@contextlib.contextmanager
def named_range(name: str) -> Iterator[None]:
    """A profiler range around a whole step or replay."""
    with torch._C._profiler._RecordFunctionFast(name):
        yield


def trace_steps(bench: Bench, built: Built, drained_graphs: bool = False) -> list[TracedStep]:
    """``TRACED_STEPS`` traced steps, each from the remembered state.  Raises ``MeasurementError`` on an empty trace."""

    def run() -> None:
        for number in range(TRACED_STEPS):
            bench.snapshot.restore()
            built.prepare()
            bench.sync()
            probe = RangeProbe()
            watched: Probe = _Draining(probe, bench.sync) if drained_graphs else probe
            with built.observe(watched), named_range(f"{STEP}{number}"):
                output = built.call()
            bench.sync()  # outside the range: it is not one of the step's own syncs
            del output

    with torch.no_grad():
        events = profiled(run)
    steps = trace.traced_steps(events, trace.spans(events, STEP), trace.spans(events, RANGE))
    if len(steps) != TRACED_STEPS or not all(step.activities for step in steps):
        raise MeasurementError("the profiler returned no kernel of the step; is another CUPTI client in this process?")
    return steps


class _Draining:
    """A range probe that waits for an idle device before each site."""

    def __init__(self, probe: RangeProbe, sync: Callable[[], None]) -> None:
        self._probe, self._sync = probe, sync

    def enter(self) -> None:
        self._sync()
        self._probe.enter()

    def leave(self) -> None:
        self._probe.leave()


def agreed(steps: list[TracedStep]) -> tuple[TracedStep, list[str]]:
    """Of the steps whose kernel count is the most common, the one of middle device time; and a note when counts differ.

    Not the first or the last whatever it took: another program on the device can stretch a step's kernels.
    """
    counts = [len(step.activities) for step in steps]
    common = collections.Counter(counts).most_common(1)[0][0]
    alike = [step for step in steps if len(step.activities) == common]
    alike.sort(key=lambda step: math.fsum(activity.duration_us for activity in step.activities))
    chosen = alike[(len(alike) - 1) // 2]
    if len(set(counts)) == 1:
        return chosen, []
    return chosen, [f"traced steps differ in device activities ({', '.join(map(str, counts))}): data-dependent work"]


def _graph_latency(bench: Bench, built: Built) -> list[float]:
    """API entry to first node start of each graph launch of the step, on a drained stream, median over steps."""
    steps = trace_steps(bench, built, drained_graphs=True)
    rows = [[launch.latency_us for launch in step.launches if launch.kind == "graph"] for step in steps]
    if len({len(row) for row in rows}) != 1:
        raise MeasurementError("traced steps launched different numbers of CUDA graphs")
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def _library_calls(bench: Bench, built: Built) -> tuple[dict[str, int] | None, str | None]:
    try:
        with torch.no_grad():
            bench.step(built)
            return count_library_calls(lambda: bench.step(built)), None
    except (MeasurementError, OSError) as error:
        return None, one_line(error)


@torch.no_grad()
def trace_replays(bench: Bench, calls: Iterable[CapturedCall], level: Any) -> list[ReplayTrace]:
    """Trace every call alone on an idle stream: its kernels, launches and launch latency.  One session for all."""
    pending, results = [], []
    for call in calls:
        try:
            call()
            bench.sync()
            pending.append(call)
        except Exception as error:  # any op may refuse any replay: the entry carries the reason
            results.append(
                ReplayTrace(
                    key=call.key,
                    level=level,
                    op=call.op,
                    kernels=[],
                    launches=0,
                    latency_us=None,
                    failure=one_line(error),
                )
            )
    if not pending:
        return results

    def run() -> None:
        for index, call in enumerate(pending):
            for _ in range(_REPLAY_REPEATS):
                bench.sync()
                with named_range(f"{REPLAY}{index}"):
                    call()
        bench.sync()

    events = profiled(run)
    ranges = trace.spans(events, REPLAY)
    steps = trace.traced_steps(events, ranges, [])
    by_call: dict[int, list[TracedStep]] = collections.defaultdict(list)
    for (_, _, number), step in zip(ranges, steps, strict=True):
        by_call[int(number)].append(step)
    for index, call in enumerate(pending):
        results.append(_replay_trace(call, level, by_call[index]))
    bench.snapshot.restore()
    return results


def _replay_trace(call: CapturedCall, level: Any, steps: list[TracedStep]) -> ReplayTrace:
    last = steps[-1]
    kernels = [(activity.name, activity.signature) for activity in last.activities if activity.kind == "kernel"]
    # Only the first launch meets an idle stream; the later ones queue behind it.
    latencies = [step.launches[0].latency_us for step in steps if step.launches and step.launches[0].kind == "kernel"]
    return ReplayTrace(
        key=call.key,
        level=level,
        op=call.op,
        kernels=kernels,
        launches=sum(launch.kind == "kernel" for launch in last.launches),
        latency_us=statistics.median(latencies) if latencies else None,
    )
