"""The machine that was measured on, and what launching costs there: part of every ``Review``."""

from __future__ import annotations

from typing import Literal

import msgspec

from taxbreak_fx.record import Measured, Percentiles, Record


class LaunchPath(Measured, frozen=True, kw_only=True):
    """A launch on its way from the host to the device, from loops in C; microseconds per launch.

    Host-blocking time of the launch call, un-instrumented: ``queued_us`` of a null kernel behind others, ``idle_us`` on
    an idle stream, ``queued_arguments_us`` of a kernel with twelve arguments, ``queued_runtime_us`` through the CUDA
    runtime instead of the driver.

    The launch floor: ``t_sys_bare_us`` is launch API entry to null kernel start, traced, without Python.  Untraced,
    ``flag_us`` is the same entry until the host sees a flag that the kernel wrote: an upper bound of T_sys.
    ``round_trip_us`` is host → polling kernel → host; half of it stands for the flag's way back, so that
    ``t_sys_untraced_us`` = ``flag_us`` − ``round_trip_us``.p50 / 2 is an estimate, not a reading.
    """

    MEASUREMENTS = (
        "queued_us",
        "idle_us",
        "queued_arguments_us",
        "queued_runtime_us",
        "t_sys_bare_us",
        "flag_us",
        "round_trip_us",
        "t_sys_untraced_us",
    )

    queued_us: Percentiles | None = None
    idle_us: Percentiles | None = None
    queued_arguments_us: Percentiles | None = None
    queued_runtime_us: Percentiles | None = None
    t_sys_bare_us: Percentiles | None = None
    flag_us: Percentiles | None = None
    round_trip_us: Percentiles | None = None
    t_sys_untraced_us: Percentiles | None = None

    @classmethod
    def unavailable(cls, reason: str) -> LaunchPath:
        """Nothing was measured, for one reason."""
        return cls(unmeasured=dict.fromkeys(cls.MEASUREMENTS, reason))


def _no_launch_path() -> LaunchPath:
    return LaunchPath.unavailable("not measured")


class DevicePath(Measured, frozen=True, kw_only=True):
    """How the device goes from one kernel to the next, and how the host learns that it is idle; microseconds.

    ``period_us``: per null kernel of those that queue behind one another on a stream, un-instrumented;
    ``graph_period_us``: the same per node of a CUDA graph.  ``null_us``: a null kernel's duration, traced.  ``gap_us``
    and ``graph_gap_us`` are the periods' p50 − ``null_us``: with them, traced durations add up to un-instrumented time.

    ``returned_us``: the host sees the flag of the last kernel → ``torch.cuda.synchronize`` has returned; ``sync_us`` =
    its p50 + half a round trip (the flag's way): end of the device's work → return, less what the kernel does after its
    flag.  ``idle_sync_us``: the whole call on an idle device.  Both with the host's caches as a step leaves them.
    """

    MEASUREMENTS = (
        "period_us",
        "graph_period_us",
        "returned_us",
        "idle_sync_us",
        "null_us",
        "gap_us",
        "graph_gap_us",
        "sync_us",
    )

    period_us: Percentiles | None = None
    graph_period_us: Percentiles | None = None
    returned_us: Percentiles | None = None
    idle_sync_us: Percentiles | None = None
    null_us: float | None = None
    gap_us: float | None = None
    graph_gap_us: float | None = None
    sync_us: float | None = None

    @classmethod
    def unavailable(cls, reason: str) -> DevicePath:
        """Nothing was measured, for one reason."""
        return cls(unmeasured=dict.fromkeys(cls.MEASUREMENTS, reason))


def _no_device_path() -> DevicePath:
    return DevicePath.unavailable("not measured")


SCORE_VERSION = 1  # of the reference workload in host_reference.py


class HostScore(Record, frozen=True, kw_only=True):
    """Microseconds of the reference workload of that ``version`` (docs/hardware-profile.md); lower is faster."""

    version: int
    us: float


class Calibration(Measured, frozen=True, kw_only=True):
    """What one launch costs on this machine, and how fast its host is.

    ``launch_us``: host-blocking time of one kernel launch call, un-instrumented; ``launch_source``: whether a loop in C
    measured it, or calls through ctypes whose own cost was subtracted.  ``t_sys_us``: null kernel, launch API entry to
    kernel start, traced.  ``host_score``: iterations of a fixed single-thread Python loop per microsecond, for scaling
    between hosts; null for the machine of a prediction whose profile names none.  ``host_reference``: the reference
    workload's median over rounds before and after every variant's pairs, by which a profile is scaled to this host;
    null: not measured.
    """

    MEASUREMENTS = ("launch_us", "t_sys_us", "host_score")

    launch_us: float | None
    t_sys_us: Percentiles | None
    host_score: float | None
    launch_source: Literal["C loop", "ctypes"] | None = None
    host_reference: HostScore | None = None
    launch_path: LaunchPath = msgspec.field(default_factory=_no_launch_path)
    device_path: DevicePath = msgspec.field(default_factory=_no_device_path)


class Conditions(Record, frozen=True, kw_only=True):
    """The circumstances of the run that can move its numbers. ``load`` is the 1-minute load average at the start.

    ``no_turn``: why other reviews on the device were not kept from measuring at the same time; null: they were.
    """

    threads: int
    affinity: list[int]
    gc: str
    grad_mode: str
    seed: int | None
    gpu_clocks_mhz: dict[str, float] | None
    load: float | None
    no_turn: str | None = None


class Machine(Record, frozen=True, kw_only=True):
    """Where the numbers come from: device and host, versions, calibration, conditions and date (ISO 8601, UTC)."""

    device: str
    host_cpu: str
    cores: int
    python: str
    torch: str
    cuda: str | None
    driver: str | None
    transformers: str | None
    triton: str | None
    date: str
    calibration: Calibration
    conditions: Conditions
