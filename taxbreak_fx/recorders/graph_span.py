"""How long each CUDA graph of a step runs on the device, without a profiler.  CUDA only.

Traced durations do not tell it: the nodes of a graph keep one distance or another from capture to capture, 0.3 µs
apart, and tracing adds an amount of its own that differs from kernel to kernel (H200, 2026-11-24: some 0.3 µs for null
kernels, 0.18 to 0.23 for kernels of 1.3 µs in one block).  So each replay is put behind a kernel that holds the stream,
with a kernel behind it that writes a flag in the host's memory.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from taxbreak_fx.device_path import HeldStream
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.launch_path import LaunchLoop, reason_of
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.variants import Built

WARM_STEPS, STEPS = 2, 11  # the first are not counted

Released = Callable[[Callable[[], None]], float]


def time_graph_spans(bench: Bench, built: Built) -> tuple[list[float] | None, str | None]:
    """Start of the first node until the end of the last one of each graph that the step launches, in order, median
    over steps; microseconds.  Or None, and the reason: whatever happens costs these numbers only.

    What lies between the release and the flag with no graph between them is taken off.
    """
    try:
        return _spans(bench, built, HeldStream(LaunchLoop()).released_us), None
    except Exception as error:  # no compiler, no driver, a graph that a held stream does not take
        bench.sync()
        bench.snapshot.restore()
        return None, reason_of(error)


def _spans(bench: Bench, built: Built, released: Released) -> list[float]:
    rows, alone = [], []
    with torch.no_grad(), quiet_gc():
        for _ in range(WARM_STEPS + STEPS):
            alone.append(released(_nothing))
            with held_replays(released) as row:
                bench.step(built)
            rows.append(row)
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise MeasurementError(f"steps launched {', '.join(str(len(row)) for row in rows)} CUDA graphs")
    empty = statistics.median(alone[WARM_STEPS:])
    return [statistics.median(column) - empty for column in zip(*rows[WARM_STEPS:], strict=True)]


@contextlib.contextmanager
def held_replays(released: Released) -> Iterator[list[float]]:
    """Per ``CUDAGraph.replay`` inside, its time on the device: from the release of the stream until the flag."""
    replay = torch.cuda.CUDAGraph.replay
    row: list[float] = []

    def timed(graph: torch.cuda.CUDAGraph) -> None:
        row.append(released(lambda: replay(graph)))

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", timed):
        yield row


def _nothing() -> None:
    pass
