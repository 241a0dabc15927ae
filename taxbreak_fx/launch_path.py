"""The way of a launch from the host to the device, measured by loops in C: no Python, and no profiler, in between.

What a launch call costs the host; and T_sys without a profiler: a kernel writes a flag in the host's memory, and a
thread watches for it.  The same loop also runs under the profiler: the launch floor without Python.  CUDA only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from taxbreak_fx import native
from taxbreak_fx.decompose import untraced_floor
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.machine import LaunchPath
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.stats import percentiles

if TYPE_CHECKING:
    from taxbreak_fx.null_kernel import Image

DRIVER = "libcuda.so.1"
SAMPLES = 500
WARM = 20  # launches not counted: the first loads the kernel
QUEUED = 100  # launches issued between two syncs: far fewer than the launch queue holds
LIMIT_NS = 200_000_000  # an answer that takes longer is none; a busy host may well pause a thread for some ms
POLLS = 1_000_000  # the kernel gives up after about 1 s (a poll is a read over the bus): later than the host does
NOT_TRACED = "not traced yet"
CODES = {
    -1: "a library or one of its launch functions is missing",
    -2: f"no answer within {LIMIT_NS // 1_000_000} ms",
    -3: "no thread could be started",
}
_SCRATCH = 4  # hidden pointers that Triton appends to a kernel's arguments; the driver reads as many as it declares


class _Launch(ctypes.Structure):
    """``struct launch`` of launch_loop.c."""

    _fields_ = (
        ("handle", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("params", ctypes.POINTER(ctypes.c_void_p)),
        ("threads", ctypes.c_uint32),
        ("runtime", ctypes.c_int32),
    )


class Kernel:
    """A kernel of one block with its arguments (ctypes values), ready to be launched on ``stream`` again and again."""

    def __init__(self, handle: int, threads: int, stream: int, arguments: tuple[Any, ...], runtime: bool) -> None:
        # The driver reads the arguments where they lie at every launch, so they live as long as this object.
        self.arguments = (*arguments, *(ctypes.c_void_p(0) for _ in range(_SCRATCH)))
        self._params = (ctypes.c_void_p * len(self.arguments))(*map(ctypes.addressof, self.arguments))
        pointers = ctypes.cast(self._params, ctypes.POINTER(ctypes.c_void_p))
        self.launch = _Launch(handle, stream, pointers, threads, int(runtime))


class LaunchLoop:
    """The loops of launch_loop.c on one driver; all times in microseconds.

    Raises ``MeasurementError`` without a compiler, without the driver, and whenever a launch fails.
    """

    def __init__(self, driver: str = DRIVER) -> None:
        self._library = native.load("launch_loop")
        self._check("open", driver.encode())
        clock = self._times(SAMPLES, lambda ns: self._check("clock", SAMPLES, ns))
        self.clock_us = statistics.median(clock)

    def kernel(self, image: Image, stream: int, *arguments: Any, runtime: str | None = None) -> Kernel:
        """The kernel of an ``Image``, loaded by the driver, or by the CUDA runtime library of that name."""
        handle = ctypes.c_void_p()
        if runtime is None:
            self._check("kernel", image.binary, image.name.encode(), ctypes.byref(handle))
        else:
            self._check("runtime_kernel", runtime.encode(), image.binary, image.name.encode(), ctypes.byref(handle))
        return Kernel(handle.value or 0, image.threads, stream, arguments, runtime is not None)

    def host_us(self, kernel: Kernel, per_drain: int, count: int = SAMPLES) -> list[float]:
        """Host-blocking time of each launch call, the clock's own cost removed; the stream is idle before every
        ``per_drain``-th."""
        launch = ctypes.byref(kernel.launch)
        self._times(WARM, lambda ns: self._check("host", launch, 1, WARM, ns))
        times = self._times(count, lambda ns: self._check("host", launch, per_drain, count, ns))
        return [us - self.clock_us for us in times]

    def launch(self, kernel: Kernel, count: int) -> None:
        """Launch it ``count`` times, each on an idle stream."""
        launch = ctypes.byref(kernel.launch)
        self._times(count, lambda ns: self._check("host", launch, 1, count, ns))

    def issue(self, kernel: Kernel, stream: int) -> None:
        """Launch it once on ``stream``, which may be recording a graph: no clock, no sync."""
        kernel.launch.stream = stream
        self._check("issue", ctypes.byref(kernel.launch))

    def flag_us(self, kernel: Kernel, flag: int, value: ctypes.c_int32, count: int = SAMPLES) -> list[float]:
        """Launch call entry until the host sees ``value``, an argument of ``kernel``, at the address ``flag``."""
        _two_cores()
        launch, total = ctypes.byref(kernel.launch), WARM + count

        def run(ns: Any) -> None:
            self._check("flag", launch, ctypes.c_void_p(flag), ctypes.byref(value), total, ctypes.c_int64(LIMIT_NS), ns)

        return self._times(total, run)[WARM:]

    def round_trip_us(self, kernel: Kernel, question: int, answer: int, count: int = SAMPLES) -> list[float]:
        """Host writes at the address ``question`` until it sees the same value at ``answer``; ``kernel`` copies it, for
        ``WARM + count`` rounds."""
        launch, total = ctypes.byref(kernel.launch), WARM + count

        def run(ns: Any) -> None:
            places = ctypes.c_void_p(question), ctypes.c_void_p(answer)
            self._check("round_trip", launch, *places, total, ctypes.c_int64(LIMIT_NS), ns)

        return self._times(total, run)[WARM:]

    @contextlib.contextmanager
    def watch(self, address: int) -> Iterator[Callable[[Callable[[], None]], float]]:
        """A function that sets the 32-bit word at ``address`` to 0, runs its argument, and returns the moment when the
        word was seen to be 1, in nanoseconds of ``time.perf_counter_ns``."""
        _two_cores()
        opened = ctypes.c_void_p()
        self._check("watch", ctypes.c_void_p(address), ctypes.byref(opened))

        def seen(run: Callable[[], None]) -> float:
            self._library.launch_loop_await(opened, 1)
            run()
            at = ctypes.c_int64()
            self._check("seen", opened, ctypes.c_int64(LIMIT_NS), ctypes.byref(at))
            return at.value

        try:
            yield seen
        finally:
            self._library.launch_loop_unwatch(opened)

    def _times(self, count: int, run: Callable[[Any], None]) -> list[float]:
        ns = (ctypes.c_int64 * count)()
        run(ns)
        return [value / 1e3 for value in ns]

    def _check(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"launch_loop_{name}")(*arguments)
        if status:
            raise MeasurementError(f"launch loop, {name}: {CODES.get(status, f'CUDA error {status}')}")


def _two_cores() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        raise MeasurementError("one core only: nobody can watch for the flag while another launches")


def measure_launch_path() -> LaunchPath:
    """Everything about a launch that needs no profiler; T_sys of the bare loop is traced later.

    What cannot be measured is null with its reason; nothing is raised.
    """
    fields: dict[str, Percentiles | None] = dict.fromkeys(LaunchPath.MEASUREMENTS)
    reasons = {"t_sys_bare_us": NOT_TRACED}
    try:
        loop = LaunchLoop()
        parts = _parts(loop)
    except Exception as error:  # no compiler, no Triton, no driver: each leaves its reason
        return LaunchPath.unavailable(reason_of(error))
    for name, measure in parts.items():
        try:
            fields[name] = percentiles(measure())
        except Exception as error:  # whatever a kernel compiler or the driver raises costs this number only
            reasons[name] = reason_of(error)
    flag, trip = fields["flag_us"], fields["round_trip_us"]
    if flag is not None and trip is not None:
        fields["t_sys_untraced_us"] = untraced_floor(flag, trip)
    else:
        reasons["t_sys_untraced_us"] = reasons["flag_us"] if flag is None else reasons["round_trip_us"]
    return LaunchPath(**fields, unmeasured=reasons)


def reason_of(error: Exception) -> str:
    """Why a measurement failed, in one line."""
    return str(error) if isinstance(error, MeasurementError) else one_line(error)


def bare_null_loop() -> Callable[[int], None]:
    """A function that launches the null kernel so many times from C, each on an idle stream.

    Raises ``MeasurementError`` without a compiler or a driver.
    """
    from taxbreak_fx.null_kernel import null_image

    loop = LaunchLoop()
    kernel = loop.kernel(null_image(), torch.cuda.current_stream().cuda_stream)
    loop.launch(kernel, WARM)
    return lambda count: loop.launch(kernel, count)


def _parts(loop: LaunchLoop) -> dict[str, Callable[[], list[float]]]:
    """How each number is measured, in order."""
    from taxbreak_fx import null_kernel

    torch.cuda.synchronize()  # and with it, the context is current in this thread
    stream = torch.cuda.current_stream().cuda_stream
    null, many = null_kernel.null_image(), null_kernel.many_arguments_image()
    target = torch.zeros(1, device="cuda")
    words = torch.zeros(64, dtype=torch.int32, pin_memory=True)
    # 128 bytes apart: two words in one cache line would be written by the host and the device at once.
    first, second = words.data_ptr(), words.data_ptr() + 128

    def with_arguments() -> Kernel:
        pointers = [ctypes.c_void_p(target.data_ptr()) for _ in range(8)]
        return loop.kernel(many, stream, *pointers, *(ctypes.c_int32(2) for _ in range(4)))

    def flag() -> list[float]:
        value = ctypes.c_int32(0)
        kernel = loop.kernel(null_kernel.flag_image(), stream, ctypes.c_void_p(words.data_ptr()), value)
        return loop.flag_us(kernel, first, value)

    def round_trip() -> list[float]:
        rounds, polls = ctypes.c_int32(WARM + SAMPLES), ctypes.c_int32(POLLS)
        places = ctypes.c_void_p(first), ctypes.c_void_p(second)
        kernel = loop.kernel(null_kernel.answer_image(), stream, *places, rounds, polls)
        return loop.round_trip_us(kernel, first, second)

    return {
        "queued_us": lambda: loop.host_us(loop.kernel(null, stream), QUEUED),
        "idle_us": lambda: loop.host_us(loop.kernel(null, stream), 1),
        "queued_arguments_us": lambda: loop.host_us(with_arguments(), QUEUED),
        "queued_runtime_us": lambda: loop.host_us(loop.kernel(null, stream, runtime=_runtime()), QUEUED),
        "flag_us": flag,
        "round_trip_us": round_trip,
    }


def _runtime() -> str:
    """The CUDA runtime that torch has loaded, under the name by which the loader finds it again."""
    name = f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}"
    ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    return name
