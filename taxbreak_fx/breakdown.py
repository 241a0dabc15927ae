"""From a ``Recording`` to a finished ``Variant``: the equations applied, what cannot be known null with its reason."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from taxbreak_fx.breakdown_cpu import MIN_NATIVE_OPS, decompose_cpu
from taxbreak_fx.decompose import (
    delta_ft,
    delta_kt,
    device_active,
    dispatch_base,
    graph_floor,
    hdbi,
    library_time,
    orchestration,
    t_issue,
    wait_time,
)
from taxbreak_fx.draft import Draft, put_coverage
from taxbreak_fx.families import classify_op
from taxbreak_fx.ft_parts import put_parts
from taxbreak_fx.model import Breakdown, FamilyReplay, Percentiles, Status, Variant
from taxbreak_fx.nodes import cuda_nodes, device_sum_us, family_replays
from taxbreak_fx.recording import InSitu, Recording, Replay, ReplayTrace, Timing, Trace

QUEUE_DEPTH = 1_000  # launches that certainly fit the device's launch queue (about 1,024): fewer cannot block the host
UNCOMPILED = ("eager", "eager-graph")
NOTED_DRIFT = 1.15  # beyond the 12.6 % (CV) by which T_host varied over ten processes of a 2-core CPU
GRAPH_CT_REASON = "no library call was made: observed by the libraries' own loggers"
NEGATIVE = "negative_residual: what was subtracted exceeds T_issue by more than its interval"


def decompose(recording: Recording, eager: Recording | None) -> Variant:
    """The finished variant.  ``eager`` supplies T_dispatch_base where the variant itself ran no native op."""
    timing = recording.timing
    if timing is None:
        reason = recording.failures.get("timing", "not reached")
        status: Status = "skipped" if reason.startswith("interrupted") or reason == "not reached" else "failed"
        return Variant.unavailable(recording.variant, status, reason)
    draft = Draft(recording, timing)
    _note_drift(draft, eager)
    frame = recording.frame
    if frame is not None and frame.guards_failure is not None and recording.variant not in UNCOMPILED:
        draft.notes.append(f"guards are not told from the frame around them: {frame.guards_failure}")
    if recording.device == "cpu":
        decompose_cpu(draft, eager)
    else:
        _decompose_cuda(draft, eager)
    return draft.finish()


def _note_drift(draft: Draft, eager: Recording | None) -> None:
    """Say so when the host ran at another speed than while eager was timed: absolute times then mislead."""
    if eager is None or eager.timing is None or eager.variant == draft.recording.variant:
        return
    drift = statistics.median(draft.timing.base_host_us) / statistics.median(eager.timing.host_us)
    if not 1 / NOTED_DRIFT < drift < NOTED_DRIFT:
        draft.notes.append(
            f"the host drifted: eager took {drift:.2f} times its own T_host while this variant was timed; absolute "
            "times are as measured then, what was removed is corrected for it"
        )


def _decompose_cuda(draft: Draft, eager: Recording | None) -> None:
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
        launches=kernel_launches + graph_launches,
        graph_launches=graph_launches,
        kernels=sum(a.kind == "kernel" for a in step.activities),
        memops=sum(a.kind != "kernel" for a in step.activities),
        device_active_us=device_active(step.activities),
        device_sum_us=device_sum_us(step.activities),
    )
    draft.put("library_calls", trace.library_calls, trace.library_failure or "not counted")
    graphed = timing.graph_launch_us is not None
    if graphed and not graph_launches:
        draft.notes.append("nothing was graphed: the step made no CUDA graph launch")

    trace = _bounded(draft, trace)

    wait, why = _wait(timing, trace, kernel_launches + graph_launches)
    draft.put("t_wait_us", wait, why)
    if wait:
        draft.clock = _without_wait(draft, _blocking_sites(timing, trace, kernel_launches + graph_launches))
    launch, why = _launch(calibration.launch_us, calibration.unmeasured, kernel_launches, graph_launches, timing)
    draft.put("launch_us", launch, why)
    issue = None if wait is None else t_issue(draft.host.median, wait)
    draft.put("issue_us", issue, draft.reasons.get("t_wait_us", ""))

    costs, ct, ct_missing = _library(draft, eager)
    draft.term("ct_us", ct, ct_missing)
    kt, why = _floor(calibration.t_sys_us, calibration.unmeasured, kernel_launches, graph_launches, trace)
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
    put_coverage(draft)
    if ft is not None and issue is not None and ct is not None and launch is not None:
        put_parts(draft, ft, issue, ct, launch)
    else:
        draft.term("closure_error", None, missing or "")
    t_sys = calibration.t_sys_us.p50 if calibration.t_sys_us else None
    draft.nodes = cuda_nodes(timing, draft.clock, trace, costs, calibration.launch_us, t_sys, ct_missing)
    draft.replay = _family_replays(draft, t_sys)


def _untraced(draft: Draft, reason: str) -> None:
    """Without a trace only host times are known: every field not set so far stays null with that reason."""
    for name in Variant.MEASUREMENTS:
        if draft.fields[name] is None and name not in draft.reasons and name != "breakdown":
            draft.put(name, None, f"the trace failed: {reason}")
    for name in Breakdown.MEASUREMENTS:
        draft.term(name, None, f"the trace failed: {reason}")


def _bounded(draft: Draft, trace: Trace) -> Trace:
    """``trace`` with graph launch latencies that the un-instrumented wall time allows, and a note where it did not."""
    traced = trace.graph_latency_us
    if not traced:
        return trace
    allowed = graph_floor(traced, draft.fields["t_wall_us"].median, draft.fields["device_active_us"])
    if allowed is None:
        draft.notes.append("graph launch latency unknown: the traced device time exceeds the un-instrumented wall time")
    elif allowed != traced:
        draft.notes.append(
            f"graph launch latency: traced {sum(traced):.0f} µs, bounded to the {sum(allowed):.0f} µs that the "
            "un-instrumented wall time leaves beside the device's work"
        )
    return msgspec.structs.replace(trace, graph_latency_us=allowed or [])


def _wait(timing: Timing, trace: Trace, launches: int) -> tuple[float | None, str]:
    """T_wait, 0 where nothing can block: no sync in the step, and its launches cannot fill the queue."""
    outside = [name for name, site in trace.step.syncs if site is None]
    if not trace.step.syncs and not _may_fill_queue(trace, launches):
        return 0.0, ""
    if timing.graph_launch_us is not None:
        return (
            None,
            f"the step blocks ({', '.join(sorted(set(outside)) or ['full launch queue'])}) inside a graphed variant",
        )
    if timing.in_situ is None or timing.drained is None:
        return None, f"the step blocks and could not be drained: {timing.in_situ_failure or 'no in-situ times'}"
    if outside:
        return None, f"the step blocks outside every recorded call ({', '.join(sorted(set(outside)))})"
    if trace.step.sites != len(timing.in_situ.site_us):
        return None, "the traced step met other calls than the timed one: its work depends on data"
    return wait_time(timing.in_situ, timing.drained, _blocking_sites(timing, trace, launches)), ""


def _blocking_sites(timing: Timing, trace: Trace, launches: int) -> Sequence[int]:
    """The sites that may block: those with a sync inside, or all of them when the launches can fill the queue."""
    if _may_fill_queue(trace, launches):
        return range(len(timing.sites))
    return sorted({site for _, site in trace.step.syncs if site is not None})


def _may_fill_queue(trace: Trace, launches: int) -> bool:
    """Whether launches may have blocked on a full queue: enough of them, and the traced queue at least half as deep.

    The traced host is up to twice as slow, so its queue is shallower than the real one.
    """
    deepest = trace.step.deepest_queue
    return launches >= QUEUE_DEPTH and (deepest is None or deepest >= QUEUE_DEPTH // 2)


def _without_wait(draft: Draft, blocking: Sequence[int]) -> InSitu | None:
    """The draft's clock with the blocking sites as they are on an idle device: what is left is issue time."""
    clock, drained = draft.clock, draft.timing.drained
    if clock is None or drained is None or draft.timing.in_situ is None:
        return clock
    scale = clock.host_us / drained.host_us
    site_us = list(clock.site_us)
    for index in blocking:
        site_us[index] = drained.site_us[index] * scale
    return msgspec.structs.replace(clock, site_us=site_us)


def _launch(
    launch_us: float | None, reasons: dict[str, str], kernels: int, graphs: int, timing: Timing
) -> tuple[float | None, str]:
    """launch_us: calibrated cost per kernel launch, plus the step's own graph launches as timed."""
    if kernels and launch_us is None:
        return None, reasons["launch_us"]
    if graphs and timing.graph_launch_us is None:
        return None, timing.in_situ_failure or "graph launches were not timed"
    return kernels * (launch_us or 0.0) + ((timing.graph_launch_us or 0.0) if graphs else 0.0), ""


def _floor(
    t_sys: Percentiles | None, reasons: dict[str, str], kernel_launches: int, graph_launches: int, trace: Trace
) -> tuple[float | None, str]:
    if kernel_launches and t_sys is None:
        return None, reasons["t_sys_us"]
    if len(trace.graph_latency_us) != graph_launches:
        return None, f"the latency of {len(trace.graph_latency_us)} of {graph_launches} graph launches was measured"
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


def _library(draft: Draft, eager: Recording | None) -> tuple[dict[int, float], float | None, str]:
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
    base = _base(recording, eager, launch_us)
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


def _base(recording: Recording, eager: Recording | None, launch_us: float) -> float | None:
    """T_dispatch_base from the variant's own native ops; where it has few (Inductor), from eager's.

    Eager's were replayed at another time: they are brought to the host's speed during this variant's pairs.
    """
    own = list(_leaves(recording).values())
    native = [key for key, traced in own if traced.launches and not classify_op(key.op, "cuda", dtype=key.dtype).i_lib]
    if len(native) >= MIN_NATIVE_OPS or eager is None or eager.timing is None or recording.timing is None:
        return dispatch_base(own, launch_us)
    base = dispatch_base(list(_leaves(eager).values()), launch_us)
    drift = statistics.median(recording.timing.base_host_us) / statistics.median(eager.timing.host_us)
    return None if base is None else base * drift


def _why(recording: Recording, key: str) -> str:
    timed = recording.timing.replays if recording.timing else []
    traced = recording.trace.replays if recording.trace else []
    failures = [(r.key, r.failure) for r in timed] + [(r.key, r.failure) for r in traced]
    return next((failure for own, failure in failures if own == key and failure), "not replayed")


def _family_replays(draft: Draft, t_sys: float | None) -> list[FamilyReplay]:
    """Hot over in-situ, launch latency above the floor, and match tiers, per family of unique calls."""
    timing, trace = draft.timing, draft.recording.trace
    if trace is None or timing.in_situ is None:
        return []
    return family_replays(timing, trace, t_sys)
