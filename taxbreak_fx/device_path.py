"""From one kernel to the next on the device, and back to the host when the work is done, measured without a profiler.

A kernel holds the stream until the host answers it: null kernels queue up behind it, so that the device never waits for
the host, and what they take together is the device's alone.  CUDA only.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, MutableSequence
from typing import Any

import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.launch_path import CODES, LIMIT_NS, NOT_TRACED, POLLS, WARM, LaunchLoop, reason_of
from taxbreak_fx.machine import DevicePath, LaunchPath
from taxbreak_fx.stats import percentiles
from taxbreak_fx.timeline import sync_return

FEW, MANY = 100, 500  # null kernels behind a held stream; fewer than the launch queue holds
ROUNDS = 30
COLD_SAMPLES = 150
COLD_BYTES = 8 << 20  # larger than a core's own caches, so that code and data come from beyond them, as after a step
HOLD_POLLS = 50  # reads over the bus by which a kernel lasts tens of µs: longer than the host takes to start waiting
_QUESTION, _ANSWER, _FLAG = 0, 32, 64  # words 128 bytes apart: two in one cache line would meet there


def measure_device_path(path: LaunchPath) -> DevicePath:
    """What follows a launch on the device, as far as no profiler is needed; the gaps wait for the null kernel's trace.

    ``path`` supplies the round trip.  What cannot be measured is null with its reason; nothing is raised.
    """
    fields: dict[str, Any] = dict.fromkeys(DevicePath.MEASUREMENTS)
    reasons = dict.fromkeys(("null_us", "gap_us", "graph_gap_us"), NOT_TRACED)
    try:
        stream = HeldStream(LaunchLoop())
    except Exception as error:  # as in ``measure_launch_path``
        return DevicePath.unavailable(reason_of(error))
    parts: dict[str, Callable[[], list[float]]] = {
        "period_us": lambda: periods(lambda count: stream.released_us(lambda: stream.issue(count))),
        "graph_period_us": lambda: _graph_periods(stream),
        "returned_us": stream.returned_us,
        "idle_sync_us": lambda: idle_sync_us(torch.cuda.synchronize),
    }
    for name, measure in parts.items():
        try:
            fields[name] = percentiles(measure())
        except Exception as error:  # as above: costs this number only
            reasons[name] = reason_of(error)
    if fields["returned_us"] is None:
        reasons["sync_us"] = reasons["returned_us"]
    elif path.round_trip_us is None:
        reasons["sync_us"] = path.unmeasured["round_trip_us"]
    else:
        fields["sync_us"] = sync_return(fields["returned_us"], path.round_trip_us)
    return DevicePath(**fields, unmeasured=reasons)


def held_null_kernels() -> tuple[Callable[[], None], int]:
    """A function that puts null kernels behind a held stream and lets them run, and how many.

    Raises ``MeasurementError`` as ``LaunchLoop`` does.
    """
    stream = HeldStream(LaunchLoop())

    def run() -> None:
        stream.released_us(lambda: stream.issue(MANY))

    return run, MANY


def periods(elapsed_us: Callable[[int], float]) -> list[float]:
    """Microseconds per kernel, from how long ``FEW`` and ``MANY`` of them took in each round: what else lies between
    the two moments is in both and cancels."""
    return [(elapsed_us(MANY) - elapsed_us(FEW)) / (MANY - FEW) for _ in range(ROUNDS)]


class HeldStream:
    """The current stream with a kernel that holds it until the host writes a word: what is issued meanwhile queues up,
    so that the device never waits for the host.

    Raises ``MeasurementError`` as ``LaunchLoop`` does.
    """

    def __init__(self, loop: LaunchLoop) -> None:
        from taxbreak_fx import null_kernel

        torch.cuda.synchronize()
        self._loop, self._stream = loop, torch.cuda.current_stream().cuda_stream
        self._memory = torch.zeros(96, dtype=torch.int32, pin_memory=True)
        address = self._memory.data_ptr()
        self._words = (ctypes.c_int32 * 96).from_address(address)
        self._flag_at = address + 4 * _FLAG
        places = ctypes.c_void_p(address + 4 * _QUESTION), ctypes.c_void_p(address + 4 * _ANSWER)
        image = null_kernel.answer_image()
        self._hold = loop.kernel(image, self._stream, *places, ctypes.c_int32(1), ctypes.c_int32(POLLS))
        self._busy = loop.kernel(image, self._stream, *places, ctypes.c_int32(1), ctypes.c_int32(HOLD_POLLS))
        flag = ctypes.c_void_p(self._flag_at), ctypes.c_int32(1)
        self._flag = loop.kernel(null_kernel.flag_image(), self._stream, *flag)
        self._null = loop.kernel(null_kernel.null_image(), self._stream)
        for kernel in (self._busy, self._flag, self._null):
            loop.issue(kernel, self._stream)  # the first launch of a kernel may load it, and wait for the device
        torch.cuda.synchronize()

    def issue(self, count: int) -> None:
        """So many null kernels on the current stream, which may be recording a graph."""
        stream = torch.cuda.current_stream().cuda_stream
        for _ in range(count):
            self._loop.issue(self._null, stream)

    def released_us(self, issue: Callable[[], None]) -> float:
        """From the release of the stream until what ``issue`` put on it has run, as the host sees it."""
        torch.cuda.synchronize()
        for word in (_QUESTION, _ANSWER, _FLAG):
            self._words[word] = 0
        self._loop.issue(self._hold, self._stream)
        try:
            issue()
            self._loop.issue(self._flag, self._stream)
        finally:
            us = answered_us(self._words)  # also after a failure: nothing may be left holding the stream
        torch.cuda.synchronize()
        return us

    def returned_us(self) -> list[float]:
        """From the moment when the host sees the flag of the device's last kernel until a synchronisation that was
        waiting meanwhile has returned, as ``torch.cuda.synchronize`` does."""
        times = []
        self._words[_QUESTION] = 0  # never asked: the kernel before the flag ends after its polls
        chill = Chill()
        with self._loop.watch(self._flag_at) as seen:
            for _ in range(WARM + COLD_SAMPLES):
                torch.cuda.synchronize()
                chill()
                returned: list[int] = []

                def run(returned: list[int] = returned) -> None:
                    self._loop.issue(self._busy, self._stream)
                    self._loop.issue(self._flag, self._stream)
                    torch.cuda.synchronize()
                    returned.append(time.perf_counter_ns())

                flag_ns = seen(run)
                times.append((returned[0] - flag_ns) / 1e3)
        return times[WARM:]


class Chill:
    """Called, it leaves the host's nearest caches full of something else, as a step of a model does."""

    def __init__(self) -> None:
        self._from, self._to = memoryview(bytes(COLD_BYTES)), memoryview(bytearray(COLD_BYTES))

    def __call__(self) -> None:
        self._to[:] = self._from


def idle_sync_us(
    sync: Callable[[], None], now: Callable[[], int] = time.perf_counter_ns, chill: Callable[[], None] | None = None
) -> list[float]:
    """Whole calls of ``sync``, the device being idle and the host's caches cold; microseconds."""
    times, chill = [], chill or Chill()
    for _ in range(WARM + COLD_SAMPLES):
        sync()
        chill()
        began = now()
        sync()
        times.append((now() - began) / 1e3)
    return times[WARM:]


def answered_us(
    words: MutableSequence[int] | ctypes.Array[ctypes.c_int32], now: Callable[[], int] = time.perf_counter_ns
) -> float:
    """Write the question; microseconds from the answer of the kernel that waits for it until the flag.

    Raises ``MeasurementError`` when either does not come.
    """
    words[_QUESTION] = 1
    limit = now() + LIMIT_NS
    moments = []
    for word in (_ANSWER, _FLAG):
        while words[word] != 1:
            if now() > limit:
                raise MeasurementError(f"held stream: {CODES[-2]}")
        moments.append(now())
    return (moments[1] - moments[0]) / 1e3


def _graph_periods(stream: HeldStream) -> list[float]:
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    for count in (FEW, MANY):
        graphs[count] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[count], capture_error_mode="relaxed"):
            stream.issue(count)
    for graph in graphs.values():
        graph.replay()  # the first replay of a graph also uploads it
    return periods(lambda count: stream.released_us(graphs[count].replay))
