"""From a ``Recording`` to a finished ``Variant``: the equations applied, what cannot be known null with its reason."""

from __future__ import annotations

import statistics

import msgspec

from taxbreak_fx.breakdown_cpu import decompose_cpu
from taxbreak_fx.breakdown_launch import launch_term
from taxbreak_fx.breakdown_library import library_term
from taxbreak_fx.breakdown_timeline import CPU, Built, exposed_of, timeline_of
from taxbreak_fx.breakdown_wait import take_wait
from taxbreak_fx.decompose import (
    delta_ft,
    delta_kt,
    device_active,
    graph_floor,
    graph_latency,
    hdbi,
    no_hdbi,
    orchestration,
    t_issue,
)
from taxbreak_fx.draft import Draft, put_coverage
from taxbreak_fx.ft_parts import put_parts
from taxbreak_fx.matching import family_replays
from taxbreak_fx.model import Status, Variant
from taxbreak_fx.nodes import cuda_nodes, device_sum_us
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import Recording, Timing, Trace
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import Breakdown, FamilyReplay

UNCOMPILED = ("eager", "eager-graph")
NOTED_PREEMPTED = 20.0  # times a second; 3 on idle cores, more than 30 on busy ones (2-core CPU, 2026-11-23)
NOTED_DRIFT = 1.15  # beyond the 12.6 % (CV) by which T_host varied over ten processes of a 2-core CPU
NEGATIVE = "negative_residual: what was subtracted exceeds T_issue by more than its interval"


def decompose(recording: Recording, eager: Recording | None) -> Variant:
    """The finished variant.  ``eager`` supplies T_dispatch_base where the variant itself ran no native op."""
    timing = recording.timing
    if timing is None:
        reason = recording.failures.get("timing", "not reached")
        status: Status = "skipped" if reason.startswith("interrupted") or reason == "not reached" else "failed"
        return Variant.unavailable(recording.variant, status, reason)
    draft = Draft(recording, timing)
    draft.fields["host_reference_us"] = host_reference(timing, None if eager is None else eager.timing)
    _note_drift(draft, eager)
    _note_launch_cost(draft)
    frame = recording.frame
    if frame is not None and frame.guards_failure is not None and recording.variant not in UNCOMPILED:
        draft.notes.append(f"guards are not told from the frame around them: {frame.guards_failure}")
    if recording.device == "cpu":
        decompose_cpu(draft, eager)
        laid: Built | str = CPU
    else:
        _note_preempted(draft)  # on the CPU device the step's own threads take turns with this one
        laid = _decompose_cuda(draft, eager)
        _note_traced_longer(draft)
    draft.fields["exposed"] = exposed_of(laid, draft.fields["t_wall_us"].median)
    draft.fields["timeline"] = None if isinstance(laid, str) else stored(laid.timeline)
    return draft.finish()


def host_reference(timing: Timing, eager: Timing | None) -> float | None:
    """The reference workload of ``machine.HostScore`` while a variant was timed, in microseconds: as it was around
    eager's pairs, × how much longer eager took in the variant's own pairs than in those.

    A host may change its speed several times a second: the few rounds around the variant's pairs met another one than
    60 pairs did (H200, 2026-11-24: 2.2 times as slow as around eager's, where eager in those pairs was 1.6 times).
    """
    own = eager if eager is not None and eager.reference_us else timing
    if not own.reference_us:
        return None
    drift = 1.0 if own is timing else statistics.median(timing.base_host_us) / statistics.median(own.host_us)
    return statistics.median(own.reference_us) * drift


def from_recording(recording: Recording, eager: Recording | None = None) -> Built | str:
    """The timeline of one variant as its decomposition lays it out, or the reason why there is none."""
    if recording.device == "cpu":
        return CPU
    if recording.timing is None:
        return recording.failures.get("timing", "not reached")
    return _decompose_cuda(Draft(recording, recording.timing), eager)


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


def _note_launch_cost(draft: Draft) -> None:
    """Say so when a launch cost something else beside this variant than when the machine was calibrated."""
    calibrated, beside = draft.recording.calibration.launch_us, draft.timing.launch_us
    if calibrated and beside and not 1 / NOTED_DRIFT < beside / calibrated < NOTED_DRIFT:
        draft.notes.append(
            f"a null kernel's launch took {beside:.2f} µs while this variant was timed and {calibrated:.2f} in the "
            "calibration: launches that were not heard cost the former"
        )


def _note_traced_longer(draft: Draft) -> None:
    """Say so when the device is active for longer than the step takes: tracing lengthens short nodes of a graph."""
    device, wall = draft.fields["device_active_us"], draft.fields["t_wall_us"].median
    if device is not None and device > wall:
        draft.notes.append(
            f"the device was active for {device:,.0f} µs while traced, in a step that takes {wall:,.0f} µs untraced: "
            "device time and HDBI are too high by as much at least"
        )


def _note_preempted(draft: Draft) -> None:
    """Say so when the host's cores were not free for the step: its host times hold what else ran."""
    timing = draft.timing
    seconds = (sum(timing.wall_us) + sum(timing.base_wall_us)) / 1e6
    if timing.preempted > NOTED_PREEMPTED * seconds:
        draft.notes.append(
            f"the host was busy: its scheduler took the CPU away {timing.preempted} times in {seconds:.2g} s of timed "
            "steps, and host times hold what ran instead; review again with idle cores"
        )


def _decompose_cuda(draft: Draft, eager: Recording | None) -> Built | str:
    """Fill the draft; its timeline, or the reason why there is none."""
    recording, timing, trace = draft.recording, draft.timing, draft.recording.trace
    calibration = recording.calibration
    if trace is None:
        why = recording.failures.get("trace", "not traced")
        _untraced(draft, why)
        return f"the trace failed: {why}"
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

    trace = _graph_latencies(draft, trace, graph_launches)

    wait, why = take_wait(draft, trace, kernel_launches + graph_launches)
    draft.put("t_wait_us", wait, why)
    launched = launch_term(draft, trace, kernel_launches, graph_launches)
    launch = launched.total
    draft.put("launch_us", launch, launched.missing)
    issue = None if wait is None else t_issue(draft.host.median, wait)
    draft.put("issue_us", issue, draft.reasons.get("t_wait_us", ""))

    library = library_term(draft, eager)
    ct = library.total
    draft.ct_source, draft.ct_families = library.source, library.families
    draft.term("ct_us", ct, library.missing)
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
    _put_index(draft, "hdbi", total, draft.term_reasons.get("orchestration_us", ""))
    path = calibration.launch_path
    untraced = {"t_sys_us": path.unmeasured.get("t_sys_untraced_us", "")}
    kt, why = _floor(path.t_sys_untraced_us, untraced, kernel_launches, graph_launches, trace)
    total = orchestration(ft, ct, kt) if ft is not None and ct is not None and kt is not None else None
    _put_index(draft, "hdbi_untraced", total, missing or why)
    put_coverage(draft)
    if ft is not None and issue is not None and ct is not None and launch is not None:
        put_parts(draft, ft, issue, ct, launch)
    else:
        draft.term("closure_error", None, missing or "")
    t_sys = calibration.t_sys_us.p50 if calibration.t_sys_us else None
    draft.nodes = cuda_nodes(
        timing, draft.clock, trace, library.sites, None if launch is None else launched.sites, t_sys, library.missing
    )
    draft.replay = _family_replays(draft, t_sys)
    return timeline_of(draft, trace, library, launched, issue)


def _put_index(draft: Draft, name: str, orchestration_us: float | None, reason: str) -> None:
    """HDBI on one launch floor; ``reason`` says why there is no T_Orchestration."""
    device = draft.fields["device_active_us"]
    if orchestration_us is None:
        draft.term(name, None, reason)
    else:
        draft.term(name, hdbi(device, orchestration_us), no_hdbi(orchestration_us, device))


def _untraced(draft: Draft, reason: str) -> None:
    """Without a trace only host times are known: every field not set so far stays null with that reason."""
    for name in Variant.MEASUREMENTS:
        if draft.fields[name] is None and name not in draft.reasons and name != "breakdown":
            draft.put(name, None, f"the trace failed: {reason}")
    for name in Breakdown.MEASUREMENTS:
        draft.term(name, None, f"the trace failed: {reason}")


def _graph_latencies(draft: Draft, trace: Trace, launches: int) -> Trace:
    """``trace`` with the latency of each graph launch as measured untraced; failing that as traced, as far as the
    un-instrumented wall time allows it, with a note."""
    path = draft.recording.calibration.launch_path
    seen, trip = draft.timing.graph_first_node_us, path.round_trip_us
    if launches and seen is not None and trip is not None and len(seen) == launches:
        draft.kt_source = "untraced"
        return msgspec.structs.replace(trace, graph_latency_us=graph_latency(seen, trip))
    traced = trace.graph_latency_us
    if not traced:
        return trace
    allowed = graph_floor(traced, draft.fields["t_wall_us"].median, draft.fields["device_active_us"])
    if allowed is None:
        note = "unknown: the traced device time exceeds the un-instrumented wall time"
    elif allowed == traced:
        draft.kt_source = "traced"
        note = f"{sum(traced):.0f} µs as traced, which delays a graph's first node"
    else:
        draft.kt_source = "traced, bounded"
        note = (
            f"traced {sum(traced):.0f} µs, bounded to the {sum(allowed):.0f} µs that the un-instrumented wall time "
            "leaves beside the device's work"
        )
    if seen is None:
        why = draft.timing.graph_first_node_failure or "no twin of the variant was built"
    elif trip is None:
        why = path.unmeasured["round_trip_us"]
    else:
        why = f"the twin launched {len(seen)} graphs, the step {launches}"
    draft.notes.append(f"graph launch latency {note}; not measured untraced: {why}")
    return msgspec.structs.replace(trace, graph_latency_us=allowed or [])


def _floor(
    t_sys: Percentiles | None, reasons: dict[str, str], kernel_launches: int, graph_launches: int, trace: Trace
) -> tuple[float | None, str]:
    if kernel_launches and t_sys is None:
        return None, reasons["t_sys_us"]
    if len(trace.graph_latency_us) != graph_launches:
        return None, f"the latency of {len(trace.graph_latency_us)} of {graph_launches} graph launches was measured"
    return delta_kt(kernel_launches, t_sys.p50 if t_sys else 0.0, trace.graph_latency_us), ""


def _family_replays(draft: Draft, t_sys: float | None) -> list[FamilyReplay]:
    """Hot over in-situ, launch latency above the floor, and match tiers, per family of unique calls."""
    timing, trace = draft.timing, draft.recording.trace
    if trace is None or timing.in_situ is None:
        return []
    return family_replays(timing, trace, t_sys)
