"""The only home of each equation of the method (docs/method.md tells the same in prose).

Pure functions over numbers and records; signs are kept.  ``breakdown`` applies them to a recording.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from taxbreak_fx.families import classify_op
from taxbreak_fx.model import OutputCheck
from taxbreak_fx.recording import Activity, InSitu, Replay, ReplayTrace

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


def graph_floor(traced_us: Sequence[float], wall_us: float, device_active_us: float) -> list[float] | None:
    """Latency of each graph launch: as traced, but in all no more than the un-instrumented T_wall − T_DeviceActive.

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
    """HDBI = T_DeviceActive / (T_DeviceActive + T_Orchestration); None when both are zero."""
    total = device_active_us + orchestration_us
    return device_active_us / total if total else None


def device_active(activities: Sequence[Activity]) -> float:
    """T_DeviceActive: length of the union of all device activities, in microseconds."""
    total, end = 0.0, float("-inf")
    for activity in sorted(activities, key=lambda a: a.start_us):
        stop = activity.start_us + activity.duration_us
        if stop > end:
            total += stop - max(activity.start_us, end)
            end = stop
    return total


def dispatch_base(leaves: Sequence[tuple[Replay, ReplayTrace]], launch_us: float) -> float | None:
    """T_dispatch_base: median T_dispatch over framework-native launching ops (paper Eq. 5); None without any."""
    native = [
        dispatch_time(replay.host_us, traced.launches, launch_us)
        for replay, traced in leaves
        if replay.host_us is not None
        and traced.launches
        and not classify_op(replay.op, "cuda", dtype=replay.dtype).i_lib
    ]
    return statistics.median(native) if native else None


def dispatch_time(host_us: float, launches: int, launch_us: float) -> float:
    """T_dispatch of a replayed op: its un-instrumented call time without its launch calls."""
    return host_us - launches * launch_us


def library_time(host_us: float, launches: int, launch_us: float, base_us: float) -> float:
    """ΔCT of one library op, subtractive: T_dispatch − T_dispatch_base.  Boxing is in both and cancels."""
    return dispatch_time(host_us, launches, launch_us) - base_us


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
