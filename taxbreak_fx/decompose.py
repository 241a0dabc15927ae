"""The only home of each equation of the method (docs/method.md tells the same in prose).

Pure functions over numbers and records; signs are kept.  ``breakdown`` applies them to a recording.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from taxbreak_fx.kinds import replay_kind
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import Activity, InSitu, Replay, ReplayTrace
from taxbreak_fx.variant_record import OutputCheck

ERROR_RATIO = 3.0


def t_issue(t_host_us: float, t_wait_us: float) -> float:
    """T_issue = T_host − T_wait."""
    return t_host_us - t_wait_us


def delta_ft(issue_us: float, ct_us: float, launch_us: float) -> float:
    """ΔFT = T_issue − ΔCT − launch_us."""
    return issue_us - ct_us - launch_us


def delta_kt(kernel_launches: int, t_sys_p50_us: float, graph_latency_us: Sequence[float]) -> float:
    """ΔKT = Σ over launches of their floor: T_sys p50 per kernel launch, its own measured latency per graph launch."""
    return kernel_launches * t_sys_p50_us + sum(graph_latency_us)


def flag_way(round_trip_us: Percentiles) -> float:
    """The way of a kernel's flag to the host: half the median round trip host → polling kernel → host, an estimate.

    The way there waits for the kernel's next poll and the way back does not, so half may be too much.
    """
    return round_trip_us.p50 / 2


def untraced_floor(flag_us: Percentiles, round_trip_us: Percentiles) -> Percentiles:
    """T_sys without a profiler: launch API entry until the host sees a kernel's flag, less the flag's way to the host.

    T_sys lies between this and ``flag_us``.
    """
    way = flag_way(round_trip_us)
    return Percentiles(p5=flag_us.p5 - way, p50=flag_us.p50 - way, p95=flag_us.p95 - way, samples=flag_us.samples)


def graph_latency(first_node_us: Sequence[float], round_trip_us: Percentiles) -> list[float]:
    """Latency of each graph launch without a profiler: launch entry until the host sees the flag of a kernel put before
    the graph's first node, less the flag's way to the host.  Signs are kept."""
    way = flag_way(round_trip_us)
    return [us - way for us in first_node_us]


def graph_floor(traced_us: Sequence[float], wall_us: float, device_active_us: float) -> list[float] | None:
    """Latency of each graph launch that has no untraced one: as traced, but in all no more than the un-instrumented
    T_wall − T_DeviceActive.

    Tracing a graph node by node delays its first node; what the wall clock leaves beside the device's work bounds the
    launch from above.  None when nothing is left: then the traced device time is itself inflated beyond use.
    """
    bound, total = wall_us - device_active_us, sum(traced_us)
    if total <= bound:
        return list(traced_us)
    return [latency * bound / total for latency in traced_us] if bound > 0 else None


def orchestration(ft_us: float, ct_us: float, kt_us: float) -> float:
    """T_Orchestration = ΔFT + ΔCT + ΔKT (paper Eq. 2)."""
    return ft_us + ct_us + kt_us


def hdbi(device_active_us: float, orchestration_us: float) -> float | None:
    """HDBI = T_DeviceActive / (T_DeviceActive + T_Orchestration).

    None when both are zero, or noise made one of them negative: then it is no share of anything.
    """
    total = device_active_us + orchestration_us
    return device_active_us / total if total and device_active_us >= 0 <= orchestration_us else None


def no_hdbi(orchestration_us: float, device_active_us: float) -> str:
    """Why ``hdbi`` is None."""
    if orchestration_us >= 0 and device_active_us >= 0:
        return "the step did no work"
    return f"negative_residual: {'T_Orchestration' if orchestration_us < 0 else 'device time'} is below zero"


def device_active(activities: Sequence[Activity]) -> float:
    """T_DeviceActive: length of the union of all device activities, in microseconds."""
    total, end = 0.0, float("-inf")
    for activity in sorted(activities, key=lambda a: a.start_us):
        stop = activity.start_us + activity.duration_us
        if stop > end:
            total += stop - max(activity.start_us, end)
            end = stop
    return total


def dispatch_bases(leaves: Sequence[tuple[Replay, ReplayTrace]], launch_us: float) -> dict[int, float]:
    """T_dispatch_base: median T_dispatch over framework-native launching ops (paper Eq. 5), by ``Replay.tensors``.

    Every tensor that an op checks or allocates makes its dispatch dearer: a library op is set against native ones with
    as many.
    """
    native: dict[int, list[float]] = {}
    for replay, traced in leaves:
        if replay.host_us is not None and traced.launches and not replay_kind(replay, "cuda").i_lib:
            us = dispatch_time(replay.host_us, traced.launches, launch_us)
            native.setdefault(replay.tensors, []).append(us)
    return {tensors: statistics.median(times) for tensors, times in native.items()}


def base_of(bases: Mapping[int, float], tensors: int) -> float:
    """T_dispatch_base for an op with so many tensors: of native ops with as many, else the next fewer, else more."""
    fewer = [count for count in bases if count <= tensors]
    return bases[max(fewer) if fewer else min(bases)]


def dispatch_time(host_us: float, launches: int, launch_us: float) -> float:
    """T_dispatch of a replayed op: its un-instrumented call time without its launch calls."""
    return host_us - launches * launch_us


def library_time(host_us: float, launches: int, launch_us: float, base_us: float) -> float:
    """ΔCT of one library op, subtractive: T_dispatch − T_dispatch_base.  Boxing is in both and cancels."""
    return dispatch_time(host_us, launches, launch_us) - base_us


def library_direct(own_us: float, unheard_launches: int, launch_us: float) -> float:
    """ΔCT of library calls, direct: time between entry and exit, less the launches made inside and not yet removed."""
    return own_us - unheard_launches * launch_us


def wait_time(clocked: InSitu, drained: InSitu, blocking: Sequence[int] | None) -> float:
    """T_wait: in-situ time of the blocking sites (all of them when ``blocking`` is None), not drained minus drained.

    The two passes ran one after the other: the drained one is brought to the host's speed during the other.
    """
    scale = clocked.host_us / drained.host_us
    indices = range(len(clocked.site_us)) if blocking is None else blocking
    return sum(clocked.site_us[i] - drained.site_us[i] * scale for i in indices)


def closure_error(pieces_us: float, issue_us: float) -> float:
    """(Σ of independently measured in-situ pieces − T_issue) ÷ T_issue."""
    return (pieces_us - issue_us) / issue_us


def equal_outputs(check: OutputCheck, floor: float) -> bool:
    """Whether the variant's error against the reference is at most three times eager's (or the dtype's rounding)."""
    return check.variant_error <= max(ERROR_RATIO * check.eager_error, floor)
