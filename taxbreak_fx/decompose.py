"""The only home of each equation of the method: from a ``Recording`` to a finished ``Variant``.

Pure functions.  Signs are kept; what cannot be known is null with its reason.  docs/method.md tells the same in prose.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from taxbreak_fx.families import classify_op
from taxbreak_fx.model import Breakdown, FamilyReplay, Interval, OutputCheck, Variant
from taxbreak_fx.nodes import SiteCost, cuda_nodes, device_sum_us, family_replays, host_only_nodes
from taxbreak_fx.recording import Activity, InSitu, Recording, Replay, ReplayTrace, Site, Timing, Trace
from taxbreak_fx.stats import interval

QUEUE_DEPTH = 1_000  # launches that certainly fit the device's launch queue (about 1,024): fewer cannot block the host
GRAPH_CT_REASON = "no library call was made: observed by the libraries' own loggers"
ERROR_RATIO = 3.0
NEGATIVE = "negative_residual: what was subtracted exceeds T_issue by more than its interval"


# --- terms (one function per equation) -----------------------------------------------------------------------------


def t_issue(t_host_us: float, t_wait_us: float) -> float:
    """T_issue = T_host − T_wait."""
    return t_host_us - t_wait_us


def delta_ft(issue_us: float, ct_us: float, launch_us: float) -> float:
    """ΔFT = T_issue − ΔCT − launch_us."""
    return issue_us - ct_us - launch_us


def delta_kt(kernel_launches: int, t_sys_p50_us: float, graph_latency_us: Sequence[float]) -> float:
    """ΔKT = Σ over launches of their floor: T_sys p50 per kernel launch, its own measured latency per graph launch."""
    return kernel_launches * t_sys_p50_us + sum(graph_latency_us)


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
    """T_dispatch_base: median T_dispatch over framework-native launching ops (paper Eq. 5); None when there are none."""
    native = [
        dispatch_time(replay.host_us, traced.launches, launch_us)
        for replay, traced in leaves
        if replay.host_us is not None and traced.launches and not classify_op(replay.op, "cuda", dtype=replay.dtype).i_lib
    ]
    return statistics.median(native) if native else None


def dispatch_time(host_us: float, launches: int, launch_us: float) -> float:
    """T_dispatch of a replayed op: its un-instrumented call time without its launch calls."""
    return host_us - launches * launch_us


def library_time(host_us: float, launches: int, launch_us: float, base_us: float) -> float:
    """ΔCT of one library op, subtractive: T_dispatch − T_dispatch_base.  Boxing is in both and cancels."""
    return dispatch_time(host_us, launches, launch_us) - base_us


def wait_time(clocked: InSitu, drained: InSitu, blocking: Sequence[int] | None) -> float:
    """T_wait: in-situ time of the blocking sites (all of them when ``blocking`` is None), not drained minus drained."""
    indices = range(len(clocked.site_us)) if blocking is None else blocking
    return sum(clocked.site_us[i] - drained.site_us[i] for i in indices)


def closure_error(pieces_us: float, issue_us: float) -> float:
    """(Σ of independently measured in-situ pieces − T_issue) ÷ T_issue."""
    return (pieces_us - issue_us) / issue_us


def equal_outputs(check: OutputCheck, floor: float) -> bool:
    """Whether the variant's error against the reference is at most three times eager's own (or the dtype's rounding)."""
    return check.variant_error <= max(ERROR_RATIO * check.eager_error, floor)


# --- a recording becomes a variant ---------------------------------------------------------------------------------


def decompose(recording: Recording, eager: Recording | None) -> Variant:
    """The finished variant.  ``eager`` supplies T_dispatch_base where the variant itself ran no native op."""
    timing = recording.timing
    if timing is None:
        reason = recording.failures.get("timing", "not reached")
        status = "skipped" if reason.startswith("interrupted") or reason == "not reached" else "failed"
        return Variant.unavailable(recording.variant, status, reason)
    draft = _Draft(recording, timing)
    if recording.device == "cpu":
        _decompose_cpu(draft)
    else:
        _decompose_cuda(draft, eager)
    return draft.finish()


class _Draft:
    """A variant under construction: fields set so far, and the reason for each that stays null."""

    def __init__(self, recording: Recording, timing: Timing) -> None:
        self.recording, self.timing = recording, timing
        self.fields: dict[str, Any] = dict.fromkeys(Variant.MEASUREMENTS)
        self.reasons: dict[str, str] = {}
        self.terms: dict[str, Any] = dict.fromkeys(Breakdown.MEASUREMENTS)
        self.term_reasons: dict[str, str] = {}
        self.parts: dict[str, float] = {}
        self.ct_source = "subtractive"
        self.nodes: list[Any] = []
        self.replay: list[FamilyReplay] = []
        self.notes = list(timing.notes)
        self.host: Interval = interval(timing.host_us)
        self.fields.update(t_wall_us=interval(timing.wall_us), t_host_us=self.host)
        self.put("compile_s", timing.compile_s, "eager compiles nothing")
        self.put("peak_memory_bytes", timing.peak_memory_bytes, "the CPU device has no allocator statistics")
        check = timing.output_check
        equal = None if check is None else equal_outputs(check, timing.output_floor)
        self.put("outputs_equal", equal, timing.output_failure or "outputs not compared")

    def put(self, name: str, value: Any, reason: str) -> None:
        """Set a variant field, or leave it null with ``reason``."""
        self.fields[name] = value
        if value is None:
            self.reasons[name] = reason
        else:
            self.reasons.pop(name, None)

    def term(self, name: str, value: float | None, reason: str) -> None:
        """Set a breakdown term, or leave it null with ``reason``."""
        self.terms[name] = value
        if value is None:
            self.term_reasons[name] = reason

    def finish(self) -> Variant:
        """The immutable variant; its invariants are checked as it is made."""
        breakdown = Breakdown(ft_parts=self.parts, ct_source=self.ct_source, unmeasured=self.term_reasons, **self.terms)
        self.fields["breakdown"] = breakdown
        return Variant(
            name=self.recording.variant, status="ok", notes=self.notes, unmeasured=self.reasons,
            output_check=self.timing.output_check, nodes=self.nodes, replay=self.replay, **self.fields,
        )  # fmt: skip


def _decompose_cuda(draft: _Draft, eager: Recording | None) -> None:
    recording, timing, trace = draft.recording, draft.timing, draft.recording.trace
    calibration = recording.calibration
    if trace is None:
        _untraced(draft, recording.failures.get("trace", "not traced"))
        return
    step = trace.step
    draft.notes += trace.notes
    kernel_launches = sum(launch.kind == "kernel" for launch in step.launches)
    graph_launches = sum(launch.kind == "graph" for launch in step.launches)
    draft.fields.update(
        launches=kernel_launches + graph_launches, graph_launches=graph_launches,
        kernels=sum(a.kind == "kernel" for a in step.activities),
        memops=sum(a.kind != "kernel" for a in step.activities),
        device_active_us=device_active(step.activities), device_sum_us=device_sum_us(step.activities),
    )  # fmt: skip
    draft.put("library_calls", trace.library_calls, trace.library_failure or "not counted")
    graphed = timing.graph_launch_us is not None
    if graphed and not graph_launches:
        draft.notes.append("nothing was graphed: the step made no CUDA graph launch")

    wait, why = _wait(timing, trace, kernel_launches + graph_launches)
    draft.put("t_wait_us", wait, why)
    launch, why = _launch(calibration.launch_us, calibration.unmeasured, kernel_launches, graph_launches, timing)
    draft.put("launch_us", launch, why)
    issue = None if wait is None else t_issue(draft.host.median, wait)
    draft.put("issue_us", issue, draft.reasons.get("t_wait_us", ""))

    costs, ct, why = _library(draft, eager)
    draft.term("ct_us", ct, why)
    kt, why = _floor(calibration.t_sys_us, calibration.unmeasured, kernel_launches, trace)
    draft.term("kt_us", kt, why)
    missing = next((draft.reasons[n] for n in ("issue_us", "launch_us") if draft.fields[n] is None), None) or (
        draft.term_reasons.get("ct_us")
    )
    ft = delta_ft(issue, ct, launch) if issue is not None and ct is not None and launch is not None else None
    if ft is not None and ft < -(draft.host.high - draft.host.low):
        ft, missing = None, NEGATIVE
    draft.term("ft_us", ft, missing or "")
    total = orchestration(ft, ct, kt) if ft is not None and ct is not None and kt is not None else None
    draft.term("orchestration_us", total, missing or draft.term_reasons.get("kt_us", ""))
    index = None if total is None else hdbi(draft.fields["device_active_us"], total)
    draft.term("hdbi", index, draft.term_reasons.get("orchestration_us", "the step did no work"))
    _coverage(draft)
    if ft is not None and issue is not None and ct is not None and launch is not None:
        _parts(draft, ft, issue, ct, launch)
    else:
        draft.term("closure_error", None, missing or "")
    t_sys = calibration.t_sys_us.p50 if calibration.t_sys_us else None
    draft.nodes = cuda_nodes(timing, trace, costs, calibration.launch_us, t_sys)
    draft.replay = _family_replays(draft, t_sys)


def _untraced(draft: _Draft, reason: str) -> None:
    for name in ("t_wait_us", "issue_us", "launch_us", "launches", "graph_launches", "kernels", "memops",
                 "device_active_us", "device_sum_us", "library_calls"):  # fmt: skip
        draft.put(name, None, f"the trace failed: {reason}")
    for name in Breakdown.MEASUREMENTS:
        draft.term(name, None, f"the trace failed: {reason}")


def _wait(timing: Timing, trace: Trace, launches: int) -> tuple[float | None, str]:
    """T_wait, 0 where nothing can block: no sync in the step and fewer launches than the queue holds."""
    blocking = sorted({site for _, site in trace.step.syncs if site is not None})
    outside = [name for name, site in trace.step.syncs if site is None]
    if not trace.step.syncs and launches < QUEUE_DEPTH:
        return 0.0, ""
    if timing.graph_launch_us is not None:
        return None, f"the step blocks ({', '.join(sorted(set(outside)) or ['full launch queue'])}) inside a graphed variant"
    if timing.in_situ is None or timing.drained is None:
        return None, f"the step blocks and could not be drained: {timing.in_situ_failure or 'no in-situ times'}"
    if outside:
        return None, f"the step blocks outside every recorded call ({', '.join(sorted(set(outside)))})"
    if trace.step.sites != len(timing.in_situ.site_us):
        return None, "the traced step met other calls than the timed one: its work depends on data"
    return wait_time(timing.in_situ, timing.drained, None if launches >= QUEUE_DEPTH else blocking), ""


def _launch(launch_us: float | None, reasons: dict[str, str], kernels: int, graphs: int,
            timing: Timing) -> tuple[float | None, str]:  # fmt: skip
    """launch_us: calibrated cost per kernel launch, plus the step's own graph launches as timed."""
    if kernels and launch_us is None:
        return None, reasons["launch_us"]
    if graphs and timing.graph_launch_us is None:
        return None, timing.in_situ_failure or "graph launches were not timed"
    return kernels * (launch_us or 0.0) + ((timing.graph_launch_us or 0.0) if graphs else 0.0), ""


def _floor(t_sys: Any, reasons: dict[str, str], kernel_launches: int, trace: Trace) -> tuple[float | None, str]:
    if kernel_launches and t_sys is None:
        return None, reasons["t_sys_us"]
    return delta_kt(kernel_launches, t_sys.p50 if t_sys else 0.0, trace.graph_latency_us), ""


def _leaves(recording: Recording) -> dict[str, tuple[Replay, ReplayTrace]]:
    """Leaf replays that have both a time and a trace, by key."""
    if recording.timing is None or recording.trace is None:
        return {}
    traced = {r.key: r for r in recording.trace.replays if r.level == "leaf" and r.failure is None}
    return {
        r.key: (r, traced[r.key])
        for r in recording.timing.replays
        if r.level == "leaf" and r.host_us is not None and r.key in traced
    }


def _library(draft: _Draft, eager: Recording | None) -> tuple[dict[int, float], float | None, str]:
    """ΔCT per site and in all: 0 where the libraries report no call, else subtractive from the leaf replays."""
    recording, timing, trace = draft.recording, draft.timing, draft.recording.trace
    assert trace is not None
    calls = trace.library_calls
    if calls is not None and not any(calls.values()):
        draft.ct_source = GRAPH_CT_REASON
        return {}, 0.0, ""
    if timing.graph_launch_us is not None:
        return {}, None, f"library calls inside a graphed variant: {calls or trace.library_failure}"
    launch_us = recording.calibration.launch_us
    if launch_us is None:
        return {}, None, recording.calibration.unmeasured["launch_us"]
    leaves = _leaves(recording)
    base = dispatch_base(list((_leaves(eager) if eager else leaves).values()), launch_us)
    if base is None:
        base = dispatch_base(list(leaves.values()), launch_us)
    costs: dict[int, float] = {}
    for index, site in enumerate(timing.sites):
        for key in site.leaf_keys:
            op = key.split("(", 1)[0]
            if not classify_op(op, "cuda", dtype=site.dtype).i_lib:
                continue
            if key not in leaves:
                return {}, None, f"the replay of {op} failed: {_why(recording, key)}"
            if base is None:
                return {}, None, "no framework-native launching op to subtract (T_dispatch_base)"
            replay, traced = leaves[key]
            assert replay.host_us is not None
            costs[index] = costs.get(index, 0.0) + library_time(replay.host_us, traced.launches, launch_us, base)
    return costs, sum(costs.values()), ""


def _why(recording: Recording, key: str) -> str:
    timed = recording.timing.replays if recording.timing else []
    traced = recording.trace.replays if recording.trace else []
    return next((r.failure for r in (*timed, *traced) if r.key == key and r.failure), "not replayed")


def _coverage(draft: _Draft) -> None:
    """Bottom-up estimate from isolated replay of the calls' own Python targets ÷ T_host."""
    hot = {r.key: r.host_us for r in draft.timing.replays if r.level == "call" and r.host_us is not None}
    keys = [site.call_key for site in draft.timing.sites if site.call_key]
    if not keys:
        draft.term("coverage", None, "only the uncompiled step's calls are replayed by their own Python targets")
    elif any(key not in hot for key in keys):
        draft.term("coverage", None, "some calls could not be replayed")
    else:
        draft.term("coverage", sum(hot[key] for key in keys) / draft.host.median, "")


def _parts(draft: _Draft, ft: float, issue: float, ct: float, launch: float) -> None:
    """Split ΔFT as far as the variant allows (method.md, third table) and close the sum against T_issue."""
    recording, timing = draft.recording, draft.timing
    clock = timing.in_situ
    frame = recording.frame
    parts = draft.parts
    if recording.variant == "eager":
        if clock is None:
            draft.term("closure_error", None, timing.in_situ_failure or "no in-situ times")
            return
        work, calls = _split_sites(timing, clock)
        parts["ops"] = work - ct - launch
        parts["python"] = issue - work
        draft.term("closure_error", closure_error(work + calls + sum(clock.gap_us), clock.host_us - (draft.host.median - issue)), "")
        return
    if timing.graph_launch_us is not None:
        around = 0.0
        if frame is not None and recording.variant != "eager-graph":
            parts.update(guards=frame.guards_us, frame=frame.frame_us)
            if recording.variant == "reduce-overhead" and frame.aot_us is not None:
                parts["aot_wrapper"] = frame.aot_us
            around = sum(parts.values())
        name = "graph_wrapper" if recording.variant == "eager-graph" else "cudagraph_runtime"
        parts[name] = ft - around
        draft.term("closure_error", None, "the graph's runtime is itself the remainder: no independent piece to close")
        return
    if frame is None or clock is None:
        why = recording.failures.get("frame") if frame is None else timing.in_situ_failure
        draft.term("closure_error", None, why or "not measured")
        return
    inside = sum(clock.site_us)
    gaps = sum(gap for gap, a, b in zip(clock.gap_us, timing.sites, timing.sites[1:], strict=False) if a.graph == b.graph)
    parts.update(guards=frame.guards_us, frame=frame.frame_us)
    if recording.variant == "inductor":
        if frame.aot_us is not None:
            parts["aot_wrapper"] = frame.aot_us
        parts["wrapper"] = gaps
        launchers = sum(us for us, site in zip(clock.site_us, timing.sites, strict=True) if site.target.startswith("triton:"))
        allocations = sum(us for us, site in zip(clock.site_us, timing.sites, strict=True) if "empty_strided" in site.target)
        triton = sum(site.target.startswith("triton:") for site in timing.sites)
        per_launch = recording.calibration.launch_us or 0.0
        parts["triton_launchers"] = launchers - triton * per_launch
        parts["allocations"] = allocations
        parts["extern_calls"] = inside - launchers - allocations - ct - (launch - triton * per_launch)
    else:
        parts["node_python"] = gaps
        parts["ops"] = inside - ct - launch
    pieces = sum(parts.values()) + ct + launch
    parts["unattributed"] = ft - sum(parts.values())
    draft.term("closure_error", closure_error(pieces, clock.host_us - (draft.host.median - issue)), "")


def _split_sites(timing: Timing, clock: InSitu) -> tuple[float, float]:
    """In-situ time of the sites that dispatch ops, and of those that are Python only."""
    work = sum(us for us, site in zip(clock.site_us, timing.sites, strict=True) if site.ops)
    return work, sum(clock.site_us) - work


def _family_replays(draft: _Draft, t_sys: float | None) -> list[FamilyReplay]:
    """Hot over in-situ, launch latency above the floor, and match tiers, per family of unique calls."""
    timing, trace = draft.timing, draft.recording.trace
    if trace is None or timing.in_situ is None:
        return []
    return family_replays(timing, trace, t_sys)


# --- the CPU device ------------------------------------------------------------------------------------------------


def _decompose_cpu(draft: _Draft) -> None:
    """T_host = ΔFT + ΔCT + T_DeviceActive: an op's dispatch cost is the op at its smallest valid shape."""
    timing = draft.timing
    for name in ("launch_us", "launches", "graph_launches", "kernels", "memops", "library_calls"):
        draft.put(name, None, "the CPU device launches nothing")
    draft.fields["t_wait_us"] = 0.0
    draft.fields["issue_us"] = draft.host.median
    draft.term("kt_us", None, "the CPU device launches nothing")
    clock = timing.in_situ
    if clock is None:
        reason = timing.in_situ_failure or "no in-situ times"
        for name in ("device_active_us", "device_sum_us"):
            draft.put(name, None, reason)
        for name in ("ft_us", "ct_us", "orchestration_us", "hdbi", "closure_error"):
            draft.term(name, None, reason)
        _coverage(draft)
        return
    costs = cpu_site_costs(timing, clock)
    device = sum(cost.device_us for cost in costs)
    ct = sum(cost.ct_us for cost in costs)
    host = draft.host.median
    ft = host - ct - device
    draft.fields.update(device_active_us=device, device_sum_us=device)
    draft.term("ct_us", ct, "")
    draft.term("ft_us", ft, "")
    total = orchestration(ft, ct, 0.0)
    draft.term("orchestration_us", total, "")
    draft.term("hdbi", hdbi(device, total) if device >= 0 else None, "negative_residual: device time is below zero")
    _coverage(draft)
    _parts_cpu(draft, ft, costs)
    draft.nodes = host_only_nodes(timing, costs)


def _parts_cpu(draft: _Draft, ft: float, costs: list[SiteCost]) -> None:
    timing, clock, frame = draft.timing, draft.timing.in_situ, draft.recording.frame
    assert clock is not None
    parts = draft.parts
    parts["dispatch"] = sum(cost.ft_us for cost in costs)
    same = [gap for gap, a, b in zip(clock.gap_us, timing.sites, timing.sites[1:], strict=False) if a.graph == b.graph]
    inside = sum(clock.site_us)
    if draft.recording.variant == "eager":
        parts["python"] = ft - parts["dispatch"]
        draft.term("closure_error", closure_error(inside + sum(clock.gap_us), clock.host_us), "")
        return
    if frame is None:
        draft.term("closure_error", None, draft.recording.failures.get("frame", "not measured"))
        parts["unattributed"] = ft - sum(parts.values())
        return
    parts.update(guards=frame.guards_us, frame=frame.frame_us)
    if draft.recording.variant == "inductor" and frame.aot_us is not None:
        parts["aot_wrapper"] = frame.aot_us
    parts["wrapper" if draft.recording.variant == "inductor" else "node_python"] = sum(same)
    pieces = inside + sum(value for name, value in parts.items() if name != "dispatch")
    parts["unattributed"] = ft - sum(parts.values())
    draft.term("closure_error", closure_error(pieces, clock.host_us), "")


def cpu_site_costs(timing: Timing, clock: InSitu) -> list[SiteCost]:
    """Per site: framework, library and device time on the CPU device, in microseconds.

    Framework time of an op is its smallest-shape replay (else its family's median, else the native median: flagged in
    ``tier``); what a library op costs above the native median at that shape is ΔCT; the rest of the in-situ time is
    device time.  View-only ops have none.  A fused C++ kernel call is device time altogether.
    """
    smallest = {r.key: r for r in timing.replays if r.level == "smallest"}
    by_family: dict[str, list[float]] = {}
    native: list[float] = []
    for replay in smallest.values():
        kind = classify_op(replay.op, "cpu", dtype=replay.dtype)
        if replay.host_us is not None and kind.family not in ("view", "host-sync"):
            by_family.setdefault(kind.family, []).append(replay.host_us)
            if not kind.i_lib:
                native.append(replay.host_us)
    base = statistics.median(native) if native else None
    return [
        _cpu_site(site, us, smallest, by_family, base) for site, us in zip(timing.sites, clock.site_us, strict=True)
    ]


def _cpu_site(site: Site, in_situ_us: float, smallest: dict[str, Replay], by_family: dict[str, list[float]],
              base: float | None) -> SiteCost:  # fmt: skip
    if site.target.startswith("cpp:"):
        return SiteCost(0.0, 0.0, in_situ_us, "measured")
    dispatch, library, tier, works = 0.0, 0.0, "smallest shape", False
    for key in site.leaf_keys:
        op = key.split("(", 1)[0]
        kind = classify_op(op, "cpu", dtype=site.dtype)
        if kind.family in ("view", "host-sync"):
            continue
        works = True
        replay = smallest.get(key)
        if replay is not None and replay.host_us is not None:
            cost = replay.host_us
        elif by_family.get(kind.family):
            cost, tier = statistics.median(by_family[kind.family]), "family median"
        elif base is not None:
            cost, tier = base, "native median"
        else:
            continue
        over = cost - base if kind.i_lib and base is not None else 0.0
        library += over
        dispatch += cost - over
    if not works:
        return SiteCost(in_situ_us, 0.0, 0.0, None)
    return SiteCost(dispatch, library, in_situ_us - dispatch - library, tier)
