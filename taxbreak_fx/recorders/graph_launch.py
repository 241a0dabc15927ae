"""How long after its launch each of a step's own CUDA graphs begins, without a profiler.  CUDA only.

The profiler delays the first node of a graph that it traces node by node.  So a twin of the variant is built in which
every graph begins with a kernel that writes a flag in the host's memory, and a thread watches for the flag.  The twin
is never the variant that is timed; it costs one more build.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import msgspec
import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.launch_path import LaunchLoop, reason_of
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recording import Timing
from taxbreak_fx.variants import Built

WARM_STEPS = 2  # not counted
STEPS = 11

Seen = Callable[[Callable[[], None]], float]


class FlagKernel:
    """A kernel that writes 1 to a word in the host's memory.  It is loaded here: a capture forbids loading.

    Raises ``MeasurementError`` without a compiler or a driver; Triton's own errors pass through.
    """

    def __init__(self) -> None:
        from taxbreak_fx import null_kernel

        torch.cuda.synchronize()  # and with it, the context is current in this thread
        self._loop = LaunchLoop()
        self._words = torch.zeros(64, dtype=torch.int32, pin_memory=True)  # the flag has its cache line to itself
        arguments = ctypes.c_void_p(self._words.data_ptr()), ctypes.c_int32(1)
        stream = torch.cuda.current_stream().cuda_stream
        self._kernel = self._loop.kernel(null_kernel.flag_image(), stream, *arguments)
        self._loop.launch(self._kernel, 1)

    def launch(self) -> None:
        """Launch it on the current stream, past torch: nothing but this launch gets into a capture."""
        self._loop.issue(self._kernel, torch.cuda.current_stream().cuda_stream)

    def watch(self) -> AbstractContextManager[Seen]:
        """``LaunchLoop.watch`` on the word that it writes."""
        return self._loop.watch(self._words.data_ptr())


def time_graph_launches(bench: Bench, timing: Timing) -> Timing:
    """``timing`` of a graphed variant that was released, with what a twin's graph launches took, or why it is unknown.

    Nothing is raised: whatever a twin meets (no compiler, no memory for it) costs this number only.
    """
    try:
        if not timing.sites:
            raise MeasurementError("no graph launch was met in the step")
        found = _first_nodes(bench, timing.variant, FlagKernel())
    except Exception as error:
        return msgspec.structs.replace(timing, graph_first_node_failure=reason_of(error))
    return msgspec.structs.replace(timing, graph_first_node_us=found)


def _first_nodes(bench: Bench, name: str, flag: FlagKernel) -> list[float]:
    with flagged_captures(flag.launch) as failures:
        twin, _ = bench.build(name)
    try:
        if failures:
            raise failures[0]
        rows = []
        with torch.no_grad(), quiet_gc(), flag.watch() as seen:
            for _ in range(WARM_STEPS + STEPS):
                with timed_replays(seen, bench.sync) as row:
                    bench.step(twin)
                rows.append(row)
    finally:
        _release(bench, twin)
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise MeasurementError(f"steps of the twin launched {', '.join(str(len(row)) for row in rows)} CUDA graphs")
    return [statistics.median(column) for column in zip(*rows[WARM_STEPS:], strict=True)]


def _release(bench: Bench, twin: Built) -> None:
    bench.sync()  # a graph may still run when its flag failed to come
    twin.release()
    bench.snapshot.restore()


@contextlib.contextmanager
def flagged_captures(launch: Callable[[], None]) -> Iterator[list[Exception]]:
    """Every CUDA graph captured inside begins with what ``launch`` puts on the current stream, the one that captures.

    ``torch.cuda.graph`` is how Inductor's graph trees, Dynamo's cudagraphs backend and our own variant capture, and it
    calls ``CUDAGraph.capture_begin`` with its stream current.  Yields what ``launch`` raised: captures go on.
    """
    begin = torch.cuda.CUDAGraph.capture_begin
    failures: list[Exception] = []

    def flagged(graph: torch.cuda.CUDAGraph, *args: Any, **kwargs: Any) -> None:
        begin(graph, *args, **kwargs)
        try:
            launch()
        except Exception as error:  # raised here it would leave the stream capturing: nobody would end the capture
            failures.append(error)  # and the caller raises it

    with mock.patch.object(torch.cuda.CUDAGraph, "capture_begin", flagged):
        yield failures


@contextlib.contextmanager
def timed_replays(
    seen: Seen, sync: Callable[[], None], now: Callable[[], int] = time.perf_counter_ns
) -> Iterator[list[float]]:
    """Per ``CUDAGraph.replay`` inside, on a drained stream: microseconds from its entry until its flag was seen."""
    replay = torch.cuda.CUDAGraph.replay
    row: list[float] = []

    def timed(graph: torch.cuda.CUDAGraph) -> None:
        sync()
        began: list[int] = []

        def run() -> None:
            began.append(now())
            replay(graph)

        row.append((seen(run) - began[0]) / 1e3)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", timed):
        yield row
