"""What a launch costs on this machine, how fast its host is, and what the machine is."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from taxbreak_fx.device_path import held_null_kernels, measure_device_path
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.launch_path import (
    NOT_TRACED,
    bare_null_loop,
    measure_launch_path,
    reason_of,
)
from taxbreak_fx.machine import Calibration, Conditions, DevicePath, LaunchPath, Machine
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import LaunchFloor
from taxbreak_fx.stats import percentiles

NULL_LAUNCHES = 400
_ROUNDS, _PER_ROUND = 15, 100
NO_LAUNCH = "the CPU device launches no kernel"


def calibrate_host(device: str) -> Calibration:
    """Launch path (CUDA) and host score of this machine; what is traced of it follows when all timing is done.

    Where the loop in C does not run, ``launch_us`` comes from calls through ctypes and ``launch_source`` says so.
    """
    if device != "cuda":
        reasons = {"launch_us": NO_LAUNCH, "t_sys_us": NO_LAUNCH}
        return Calibration(
            launch_us=None,
            t_sys_us=None,
            host_score=host_score(),
            launch_path=LaunchPath.unavailable(NO_LAUNCH),
            device_path=DevicePath.unavailable(NO_LAUNCH),
            unmeasured=reasons,
        )
    path, reasons = measure_launch_path(), {"t_sys_us": NOT_TRACED}
    launch_us: float | None = None
    source: Literal["C loop", "ctypes"] | None = None
    if path.queued_us is not None:
        launch_us, source = path.queued_us.p50, "C loop"
    else:
        try:
            launch_us, source = kernel_launch_us(), "ctypes"
        except (MeasurementError, OSError, AttributeError, RuntimeError, ImportError) as error:
            reasons["launch_us"] = f"launch cost not measured: {error}"
    return Calibration(
        launch_us=launch_us,
        t_sys_us=None,
        host_score=host_score(),
        launch_source=source,
        launch_path=path,
        device_path=measure_device_path(path),
        unmeasured=reasons,
    )


def host_score() -> float:
    """Iterations per microsecond of a fixed single-thread Python loop; the best of 7 rounds."""

    def once() -> float:
        started = time.perf_counter_ns()
        total = 0
        for i in range(20_000):
            total += i & 7
        return 20_000 * 1e3 / (time.perf_counter_ns() - started)

    return max(once() for _ in range(7))


def kernel_launch_us() -> float:
    """Host-blocking microseconds of one ``cuLaunchKernel`` of a null kernel, un-instrumented, where no compiler is.

    The driver call is made through ctypes; what ctypes adds is measured on the same call with a null function handle,
    which the driver refuses at once, and removed.  Raises ``MeasurementError`` when the launch fails.
    """
    from taxbreak_fx.null_kernel import compiled_null_kernel

    kernel = compiled_null_kernel()
    threads = 32 * kernel.metadata.num_warps  # the kernel was compiled for exactly that many
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    launch.restype = ctypes.c_int
    launch.argtypes = [ctypes.c_void_p] + [ctypes.c_uint] * 7 + [ctypes.c_void_p] * 3
    stream = torch.cuda.current_stream().cuda_stream
    # Triton kernels take two hidden scratch pointers; unused here, but the driver reads as many as the kernel declares.
    scratch = [ctypes.c_void_p(0) for _ in range(4)]
    params = (ctypes.c_void_p * 4)(*[ctypes.addressof(pointer) for pointer in scratch])

    def per_call(handle: Any) -> tuple[float, int]:
        status = 0
        torch.cuda.synchronize()
        started = time.perf_counter_ns()
        for _ in range(_PER_ROUND):
            status = launch(handle, 1, 1, 1, threads, 1, 1, 0, stream, params, None)
        elapsed = (time.perf_counter_ns() - started) / 1e3 / _PER_ROUND
        torch.cuda.synchronize()
        return elapsed, status

    differences = []
    for _ in range(_ROUNDS):
        full, status = per_call(kernel.function)
        refused, refusal = per_call(None)
        if status != 0 or refusal == 0:
            raise MeasurementError(f"cuLaunchKernel returned {status} for a null kernel and {refusal} for no kernel")
        differences.append(full - refused)
    return statistics.median(differences)


def launch_floor(
    profiled_launches: Callable[[Callable[[], None]], list[float]],
    profiled_durations: Callable[[Callable[[], None]], list[float]],
) -> LaunchFloor:
    """T_sys: launch API entry to kernel start of a null kernel on an idle stream, traced; by Triton and by a bare loop.

    ``profiled_launches`` runs its argument under the profiler and returns the launch latencies in microseconds;
    ``profiled_durations`` returns the kernels' durations: of null kernels that queue behind one another.
    """
    from taxbreak_fx.null_kernel import launch_null_kernel

    def run() -> None:
        for _ in range(NULL_LAUNCHES):
            torch.cuda.synchronize()
            launch_null_kernel()
        torch.cuda.synchronize()

    launch_null_kernel()
    t_sys, failure = _traced_floor(profiled_launches(run))
    null_us, null_failure = _null_duration(profiled_durations)
    bare_us: Percentiles | None = None
    try:
        bare = bare_null_loop()
    except Exception as error:  # no compiler, or whatever it or the driver raises: the other floor stands
        bare_failure: str | None = reason_of(error)
    else:
        bare_us, bare_failure = _traced_floor(profiled_launches(lambda: bare(NULL_LAUNCHES)))
    return LaunchFloor(
        t_sys_us=t_sys,
        failure=failure,
        bare_us=bare_us,
        bare_failure=bare_failure,
        null_us=null_us,
        null_failure=null_failure,
    )


def _null_duration(profiled: Callable[[Callable[[], None]], list[float]]) -> tuple[float | None, str | None]:
    """Median duration of null kernels behind one another, traced; the few other kernels of the run do not move it."""
    try:
        run, count = held_null_kernels()
        durations = profiled(run)
    except Exception as error:  # as for the bare loop
        return None, reason_of(error)
    if len(durations) < count:
        return None, f"the trace holds {len(durations)} of {count} null kernels"
    return statistics.median(durations), None


def _traced_floor(latencies: list[float]) -> tuple[Percentiles | None, str | None]:
    if len(latencies) < NULL_LAUNCHES:
        return None, f"the trace holds {len(latencies)} of {NULL_LAUNCHES} null launches"
    return percentiles(latencies), None


def describe_machine(device: str, calibration: Calibration, seed: int | None) -> Machine:
    """Device, host, versions, calibration and conditions of this process."""
    cuda = device == "cuda"
    return Machine(
        device=torch.cuda.get_device_name() if cuda else "cpu",
        host_cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda if cuda else None,
        driver=_driver() if cuda else None,
        transformers=_version("transformers"),
        triton=_version("triton"),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        calibration=calibration,
        conditions=Conditions(
            threads=torch.get_num_threads(),
            affinity=sorted(os.sched_getaffinity(0)),
            gc="collected, then disabled while timing" if gc.isenabled() else "disabled",
            grad_mode="no_grad",
            seed=seed,
            gpu_clocks_mhz=_clocks() if cuda else None,
            load=os.getloadavg()[0],
        ),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _nvml() -> Any:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    library.nvmlInit_v2()
    return library


def _driver() -> str | None:
    with contextlib.suppress(OSError):
        text = ctypes.create_string_buffer(80)
        if _nvml().nvmlSystemGetDriverVersion(text, 80) == 0:
            return text.value.decode()
    return None


def _clocks() -> dict[str, float] | None:
    """SM and memory clock in MHz as NVML reads them now."""
    with contextlib.suppress(OSError):
        library, handle, value = _nvml(), ctypes.c_void_p(), ctypes.c_uint()
        if library.nvmlDeviceGetHandleByIndex_v2(torch.cuda.current_device(), ctypes.byref(handle)) == 0:
            clocks = {}
            for name, kind in (("sm", 1), ("memory", 2)):
                if library.nvmlDeviceGetClockInfo(handle, kind, ctypes.byref(value)) == 0:
                    clocks[name] = float(value.value)
            return clocks or None
    return None
