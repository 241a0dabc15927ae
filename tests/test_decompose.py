"""The equations of method.md on typed-in recordings: exact microseconds, signs, and a reason for every null."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_recording import (
    ADD,
    ADDMM,
    GLUE_US,
    SITE_US,
    SITES,
    VIEW,
    activity,
    calibration,
    clock,
    eager_recording,
    eager_step,
    eager_timing,
    eager_trace,
    launch,
    leaf,
    parts_of,
    recording,
    spans,
    step,
    timing,
    trace,
    waiting,
)

from taxbreak_fx import decompose as eq
from taxbreak_fx.breakdown import NEGATIVE, decompose
from taxbreak_fx.breakdown_library import NO_CALLS
from taxbreak_fx.recording import Recording, Replay, ReplayTrace
from taxbreak_fx.variant_record import OutputCheck

TERMS = ("ft_us", "ct_us", "kt_us", "orchestration_us", "hdbi")


def with_timing(**fields: Any) -> Recording:
    """The reference step with other timing fields."""
    return eager_recording(timing=eager_timing(**fields))


def with_trace(**fields: Any) -> Recording:
    """The reference step with other trace fields."""
    return eager_recording(trace=eager_trace(**fields))


# --- equations, one by one ------------------------------------------------------------------------------------------


def test_each_equation() -> None:
    assert eq.t_issue(100.0, 30.0) == 70.0
    assert eq.delta_ft(70.0, 13.0, 8.0) == 49.0
    assert eq.delta_ft(10.0, 13.0, 8.0) == -11.0  # the sign is kept
    assert eq.delta_kt(3, 5.0, [20.0, 22.5]) == 57.5  # 3 kernel launches at the floor, two graphs at their own
    assert eq.delta_kt(0, 0.0, []) == 0.0
    assert eq.orchestration(49.0, 13.0, 57.5) == 119.5
    assert eq.hdbi(60.0, 180.0) == 0.25
    assert eq.hdbi(0.0, 0.0) is None
    assert eq.hdbi(60.0, -48.0) is None and eq.hdbi(-1.0, 60.0) is None  # 60 ÷ 12 = 5 would be no share
    assert eq.no_hdbi(0.0, 0.0) == "the step did no work"
    assert eq.no_hdbi(-48.0, 60.0) == "negative_residual: T_Orchestration is below zero"
    assert eq.no_hdbi(60.0, -1.0) == "negative_residual: device time is below zero"
    assert eq.dispatch_time(25.0, 2, 4.0) == 17.0
    assert eq.library_time(25.0, 1, 4.0, 8.0) == 13.0
    assert eq.library_time(11.0, 1, 4.0, 8.0) == -1.0
    assert eq.closure_error(90.0, 100.0) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("times", "union"),
    [
        ([], 0.0),
        ([(0.0, 10.0), (20.0, 5.0)], 15.0),  # apart
        ([(0.0, 10.0), (5.0, 10.0)], 15.0),  # overlapping, two streams
        ([(0.0, 30.0), (5.0, 10.0)], 30.0),  # one inside the other
        ([(0.0, 30.0), (5.0, 10.0), (25.0, 10.0)], 35.0),  # the end seen last is not the latest end
        ([(20.0, 5.0), (0.0, 20.0)], 25.0),  # touching, out of order
    ],
)
def test_device_active_is_the_union_over_streams(times: list[tuple[float, float]], union: float) -> None:
    activities = [activity("k", start, length, stream=index) for index, (start, length) in enumerate(times)]
    assert eq.device_active(activities) == union


@pytest.mark.parametrize(
    ("wall", "device", "latencies"),
    [
        (120.0, 60.0, [20.0, 30.0]),  # 60 µs beside the device's work: both fit
        (85.0, 60.0, [10.0, 15.0]),  # 25 µs for 50: half of each
        (60.0, 60.0, None),
        (50.0, 60.0, None),
    ],
)
def test_the_wall_time_bounds_graph_latencies(wall: float, device: float, latencies: list[float] | None) -> None:
    assert eq.graph_floor([20.0, 30.0], wall, device) == latencies


def test_dispatch_base_is_the_median_over_native_launching_ops_only() -> None:
    # native: 12−4 = 8, 21−2·4 = 13, 14−4 = 10 → median 10.  Not counted: a library op, a view, a failed replay.
    leaves = [leaf(ADD, 12.0, 1), leaf("aten.cumsum.default", 21.0, 2), leaf("aten.mul.Tensor", 14.0, 1)]
    leaves += [leaf(ADDMM, 500.0, 1), leaf(VIEW, 300.0, 0), leaf("aten.sub.Tensor", None, 1, "refused")]
    assert eq.dispatch_bases(leaves, 4.0) == {1: 10.0}
    assert eq.dispatch_bases([leaf(ADDMM, 500.0, 1), leaf(VIEW, 300.0, 0)], 4.0) == {}


def test_a_library_op_is_set_against_native_ops_with_as_many_tensors() -> None:
    def counted(op: str, host_us: float, tensors: int) -> tuple[Replay, ReplayTrace]:
        timed, traced = leaf(op, host_us, 1)
        return msgspec.structs.replace(timed, tensors=tensors), traced

    leaves = [counted(ADD, 14.0, 3), counted("aten.mul.Tensor", 16.0, 3), counted("aten.native_layer_norm", 23.0, 6)]
    bases = eq.dispatch_bases(leaves, 4.0)
    assert bases == {3: 11.0, 6: 19.0}
    assert [eq.base_of(bases, tensors) for tensors in (2, 3, 4, 5, 6, 9)] == [11.0, 11.0, 11.0, 11.0, 19.0, 19.0]


def test_wait_time_compares_the_blocking_sites_only() -> None:
    clocked, drained = clock([10.0, 50.0, 20.0], 100.0), clock([9.0, 12.0, 19.0], 100.0, True)
    assert eq.wait_time(clocked, drained, [1]) == 38.0
    assert eq.wait_time(clocked, drained, None) == 1.0 + 38.0 + 1.0
    assert eq.wait_time(clocked, drained, []) == 0.0


@pytest.mark.parametrize(
    ("eager_error", "own", "floor", "equal"),
    [(1e-3, 3e-3, 0.0, True), (1e-3, 3.1e-3, 0.0, False), (0.0, 1e-4, 1e-3, True), (0.0, 2e-3, 1e-3, False)],
)
def test_outputs_are_equal_within_three_times_eagers_error_or_the_dtypes_rounding(
    eager_error: float, own: float, floor: float, equal: bool
) -> None:
    check = OutputCheck(
        reference_dtype="float32", eager_error=eager_error, variant_error=own, top1_flips=0, top1_total=1
    )
    assert eq.equal_outputs(check, floor) is equal


# --- a whole step ---------------------------------------------------------------------------------------------------


def test_the_reference_step() -> None:
    variant = decompose(eager_recording(), None)
    parts = parts_of(variant)
    assert (variant.t_wait_us, variant.issue_us) == (0.0, 100.0)
    assert (variant.launches, variant.graph_launches, variant.kernels, variant.memops) == (2, 0, 2, 0)
    assert variant.launch_us == 2 * 4.0
    # base = add: 12−4 = 8.  ΔCT = addmm: 25−4−8 = 13.
    assert parts.ct_us == 13.0
    assert parts.ct_source == "subtractive: library calls were not timed"
    assert parts.ft_us == 100.0 - 13.0 - 8.0
    assert parts.kt_us == 2 * 5.0
    assert parts.orchestration_us == 79.0 + 13.0 + 10.0
    # 200…240 and 230…260: union 60, sum 70
    assert (variant.device_active_us, variant.device_sum_us) == (60.0, 70.0)
    assert parts.hdbi == pytest.approx(60.0 / 162.0)
    # ops: 30 + 20 − 13 − 8; python: 100 − 50
    assert parts.ft_parts == {"ops": 29.0, "python": 50.0}
    # raw pieces: sites 51, glue 25
    assert parts.closure_error == pytest.approx((76.0 - 100.0) / 100.0)


def test_in_situ_times_are_brought_to_the_speed_of_the_pairs_but_the_closure_is_raw() -> None:
    # The clocked pass ran on a host twice as slow: sites 60 + 40 of T_host 200 stand for 30 + 20 of 100.
    slow = clock([2 * us for us in SITE_US], host_us=200.0)
    # Its spans met 160: all of them are raw pieces, 2 × 51 + 2 × 25 of 160.
    raw = spans(2 * sum(SITE_US), 2 * GLUE_US, host_us=160.0)
    parts = parts_of(decompose(with_timing(in_situ=slow, spans=raw), None))
    assert parts.ft_parts == {"ops": 29.0, "python": 50.0}
    assert parts.closure_error == pytest.approx((152.0 - 160.0) / 160.0)


def test_coverage_is_the_replayed_calls_over_t_host() -> None:
    sites = [
        SITES[0],
        msgspec.structs.replace(SITES[1], call_key="linear"),
        msgspec.structs.replace(SITES[2], call_key="add"),
    ]
    calls = [
        Replay(key=name, level="call", op="x", dtype=None, host_us=us) for name, us in (("linear", 28.0), ("add", 14.0))
    ]
    replays = eager_timing().replays + calls
    assert parts_of(decompose(with_timing(sites=sites, replays=replays), None)).coverage == pytest.approx(0.42)
    failed = [*replays[:-1], msgspec.structs.replace(calls[1], host_us=None, failure="refused")]
    parts = parts_of(decompose(with_timing(sites=sites, replays=failed), None))
    assert (parts.coverage, parts.unmeasured["coverage"]) == (None, "some calls could not be replayed")


def test_a_library_op_cheaper_than_a_native_one_keeps_its_sign() -> None:
    # addmm 11 − 4 − 8 = −1, so ΔFT = 100 + 1 − 8 = 93
    addmm, add = leaf(ADDMM, 11.0, 1), leaf(ADD, 12.0, 1)
    parts = parts_of(decompose(with_timing(replays=[addmm[0], add[0]]), None))
    assert (parts.ct_us, parts.ft_us) == (-1.0, 93.0)


def test_a_variant_with_few_native_ops_takes_eagers_base_at_its_own_hosts_speed() -> None:
    # own base 15 − 4 = 11; eager's 12 − 4 = 8
    own = eager_recording(timing=eager_timing(replays=[leaf(ADDMM, 25.0, 1)[0], leaf(ADD, 15.0, 1)[0]]))
    assert parts_of(decompose(own, None)).ct_us == 25.0 - 4.0 - 11.0
    assert parts_of(decompose(own, eager_recording())).ct_us == 25.0 - 4.0 - 8.0
    # eager alone took 200 µs, beside this variant 100: its base of 8 stands for 4
    slow = eager_recording(timing=eager_timing(host_us=200.0))
    assert parts_of(decompose(own, slow)).ct_us == 25.0 - 4.0 - 4.0
    # three native ops of its own make a median: 11, 12 and 13
    natives = [leaf(op, us, 1) for op, us in ((ADD, 15.0), ("aten.mul.Tensor", 16.0), ("aten.sub.Tensor", 17.0))]
    replays = [leaf(ADDMM, 25.0, 1), *natives]
    many = eager_recording(
        timing=eager_timing(replays=[timed for timed, _ in replays]),
        trace=eager_trace(replays=[traced for _, traced in replays]),
    )
    assert parts_of(decompose(many, eager_recording())).ct_us == 25.0 - 4.0 - 12.0


def test_no_library_call_heard_means_zero() -> None:
    parts = parts_of(decompose(with_trace(library_calls={"cublas": 0, "cublaslt": 0, "cudnn": 0}), None))
    assert (parts.ct_us, parts.ct_source, parts.ft_us) == (0.0, NO_CALLS, 92.0)


# --- T_wait ---------------------------------------------------------------------------------------------------------


def test_wait_of_a_blocking_call_leaves_issue_time_parts_rows_and_closure() -> None:
    variant = decompose(waiting(), None)
    parts = parts_of(variant)
    assert (variant.t_wait_us, variant.issue_us) == (15.0, 85.0)
    assert parts.ft_us == 85.0 - 13.0 - 8.0
    # without its wait the blocking call is 5: ops = 30 + 5 − 13 − 8, python = 85 − 35
    assert parts.ft_parts == {"ops": 14.0, "python": 50.0}
    # pieces 1 + 30 + 20 + 25 − 15 = 61 of T_issue 85
    assert parts.closure_error == pytest.approx((61.0 - 85.0) / 85.0)
    blocking = next(node for node in variant.nodes if node.family == "host-sync")
    assert blocking.ft_us == 5.0 - 4.0  # one launch in this trace, no ΔCT


def test_the_drained_pass_is_brought_to_the_hosts_speed() -> None:
    # As above, but the drained pass met a host twice as slow, and the clocked one a host half as slow as the pairs.
    slow = clock([2.0, 56.0, 10.0], 200.0, drained=True)
    assert decompose(waiting(drained=slow), None).t_wait_us == 15.0
    fast = clock([0.5, 15.0, 10.0], 50.0)
    variant = decompose(waiting(in_situ=fast, drained=slow), None)
    # the wait is 10 − 10 ÷ 4 as clocked, twice that at the speed of the pairs; what is left of the call is 10 ÷ 2
    assert variant.t_wait_us == 15.0
    # ops 30 + 5 − 13 − 8; python is T_issue 85 − 35: none of the wait gets into it
    assert parts_of(variant).ft_parts == {"ops": 14.0, "python": 50.0}


def test_wait_is_null_with_a_reason_when_the_step_could_not_be_drained() -> None:
    variant = decompose(waiting(drained=None, in_situ_failure="the drained pass met 4 calls"), None)
    parts = parts_of(variant)
    why = "the step blocks and could not be drained: the drained pass met 4 calls"
    assert variant.t_wait_us is None and variant.issue_us is None
    assert variant.unmeasured["t_wait_us"] == variant.unmeasured["issue_us"] == why
    for term in ("ft_us", "orchestration_us", "hdbi", "closure_error"):
        assert (getattr(parts, term), parts.unmeasured[term]) == (None, why)
    assert (parts.ct_us, parts.kt_us) == (13.0, 10.0)  # what does not hang on the wait is still there
    assert parts.ft_parts == {}


def test_wait_is_null_when_a_sync_lies_outside_every_call() -> None:
    traced = eager_trace(eager_step(syncs=[("cudaStreamSynchronize", 2), ("cudaDeviceSynchronize", None)]))
    variant = decompose(msgspec.structs.replace(waiting(), trace=traced), None)
    assert variant.t_wait_us is None
    assert variant.unmeasured["t_wait_us"] == (
        "the step blocks outside every recorded call (cudaDeviceSynchronize): its blocking calls were not timed"
    )


def test_wait_is_null_when_the_traced_step_met_other_calls() -> None:
    traced = eager_trace(eager_step(syncs=[("cudaStreamSynchronize", 2)], sites=4))
    variant = decompose(msgspec.structs.replace(waiting(), trace=traced), None)
    assert variant.unmeasured["t_wait_us"].startswith("the traced step met other calls than the timed one")


@pytest.mark.parametrize(
    ("launches", "deepest", "wait"),
    [(999, None, 0.0), (1_000, None, 3.0), (1_000, 500, 3.0), (1_000, 499, 0.0)],
)
def test_from_a_thousand_launches_on_every_call_may_wait_for_the_queue(
    launches: int, deepest: int | None, wait: float
) -> None:
    kernels = [activity("k", float(i), 1.0, launch=i, at_site=2) for i in range(launches)]
    queued = step(kernels, [launch(at_site=2)] * launches, sites=3)
    traced = trace(msgspec.structs.replace(queued, deepest_queue=deepest), library_calls={"cublas": 0})
    timed = eager_timing(
        host_us=9_000.0,
        in_situ=clock([1.0, 30.0, 8_000.0], 9_000.0),
        drained=clock([0.0, 28.0, 8_000.0], 9_000.0, drained=True),
    )
    assert decompose(eager_recording(timing=timed, trace=traced), None).t_wait_us == wait


def test_a_full_queue_that_could_not_be_drained_is_null() -> None:
    kernels = [activity("k", float(i), 1.0, launch=i) for i in range(1_000)]
    traced = trace(step(kernels, [launch()] * 1_000), library_calls={"cublas": 0})
    variant = decompose(recording(timing(), traced), None)
    assert variant.unmeasured["t_wait_us"] == "the step blocks and could not be drained: no in-situ times"


# --- nulls and their reasons ----------------------------------------------------------------------------------------


def test_without_a_trace_host_times_stay_and_every_other_term_is_null() -> None:
    variant = decompose(eager_recording(trace=None, failures={"trace": "timed out after 3 s"}), None)
    parts = parts_of(variant)
    assert variant.t_host_us is not None and variant.t_wall_us is not None
    for name in ("launches", "kernels", "memops", "device_active_us", "device_sum_us", "t_wait_us", "launch_us"):
        assert (getattr(variant, name), variant.unmeasured[name]) == (None, "the trace failed: timed out after 3 s")
    for term in (*TERMS, "coverage", "closure_error"):
        assert (getattr(parts, term), parts.unmeasured[term]) == (None, "the trace failed: timed out after 3 s")


@pytest.mark.parametrize(
    ("reason", "status"),
    [("out of memory", "failed"), ("interrupted by the user", "skipped"), ("not reached", "skipped")],
)
def test_without_timing_a_variant_is_failed_or_skipped(reason: str, status: str) -> None:
    variant = decompose(recording(None, None, variant="inductor", failures={"timing": reason}), None)
    assert (variant.status, variant.reason, variant.breakdown) == (status, reason, None)


def test_an_unknown_launch_cost_leaves_launch_library_and_framework_time_null() -> None:
    variant = decompose(eager_recording(calibration=calibration(launch_us=None)), None)
    parts = parts_of(variant)
    assert (variant.launch_us, variant.unmeasured["launch_us"]) == (None, "no launch_us here")
    for term in ("ct_us", "ft_us", "orchestration_us", "hdbi", "closure_error"):
        assert (getattr(parts, term), parts.unmeasured[term]) == (None, "no launch_us here")
    assert parts.kt_us == 10.0
    assert {node.ft_us for node in variant.nodes} == {None}


def test_an_unknown_t_sys_leaves_kt_orchestration_and_hdbi_null() -> None:
    parts = parts_of(decompose(eager_recording(calibration=calibration(t_sys_us=None)), None))
    assert (parts.ft_us, parts.ct_us) == (79.0, 13.0)
    for term in ("kt_us", "orchestration_us", "hdbi"):
        assert (getattr(parts, term), parts.unmeasured[term]) == (None, "no t_sys_us here")


def test_a_failed_replay_of_a_library_op_leaves_its_share_null_in_total_and_rows() -> None:
    addmm, add = leaf(ADDMM, None, 1, "RuntimeError: refused"), leaf(ADD, 12.0, 1)
    variant = decompose(with_timing(replays=[addmm[0], add[0]]), None)
    parts = parts_of(variant)
    why = f"the replay of {ADDMM} failed: RuntimeError: refused"
    for term in ("ct_us", "ft_us", "orchestration_us", "hdbi"):
        assert (getattr(parts, term), parts.unmeasured[term]) == (None, why)
    rows = {node.family: node for node in variant.nodes}
    assert (rows["gemm"].ct_us, rows["gemm"].ft_us, rows["gemm"].unmeasured["ct_us"]) == (None, None, why)
    assert (rows["elementwise"].ct_us, rows["elementwise"].ft_us) == (0.0, 16.0)


def test_no_native_op_to_subtract_leaves_library_time_null() -> None:
    only = eager_timing(sites=SITES[:2], in_situ=clock(SITE_US[:2], 100.0), replays=[leaf(ADDMM, 25.0, 1)[0]])
    traced = eager_trace(
        step([activity("k", 0.0, 5.0, at_site=1)], [launch(at_site=1)], sites=2), replays=[leaf(ADDMM, 25.0, 1)[1]]
    )
    parts = parts_of(decompose(eager_recording(timing=only, trace=traced), None))
    assert parts.unmeasured["ct_us"] == "no framework-native launching op to subtract (T_dispatch_base)"


def test_a_residual_below_its_interval_is_null_within_it_keeps_its_sign() -> None:
    # T_host 10 − ΔCT 13 − launch 8 = −11: the interval of ten equal samples has no width.
    parts = parts_of(decompose(with_timing(host_us=10.0), None))
    assert (parts.ft_us, parts.unmeasured["ft_us"]) == (None, NEGATIVE)
    assert parts.unmeasured["hdbi"] == NEGATIVE
    # Samples 5 … 20, median 20: ΔFT = 20 − 13 − 8 = −1, and the interval is wider than that.
    wide = msgspec.structs.replace(eager_timing(), host_us=[5.0] * 4 + [20.0] * 5)
    assert parts_of(decompose(eager_recording(timing=wide), None)).ft_us == pytest.approx(-1.0)


def test_an_orchestration_below_zero_keeps_its_sign_and_has_no_hdbi() -> None:
    # Two launches at 10: ΔFT = 10 − 0 − 20 = −10, within an interval of 15; ΔKT 2 × 2, untraced 2 × 1.
    wide = msgspec.structs.replace(eager_timing(), host_us=[25.0] * 4 + [10.0] * 5)
    quiet = eager_trace(library_calls={"cublas": 0, "cublaslt": 0})
    floors = calibration(launch_us=10.0, t_sys_us=2.0, untraced_us=1.0)
    parts = parts_of(decompose(eager_recording(timing=wide, trace=quiet, calibration=floors), None))
    assert (parts.ft_us, parts.orchestration_us) == (-10.0, -6.0)
    for name in ("hdbi", "hdbi_untraced"):
        assert (getattr(parts, name), parts.unmeasured[name]) == (None, eq.no_hdbi(-6.0, 60.0))


def test_in_situ_times_that_failed_leave_only_the_split_null() -> None:
    variant = decompose(with_timing(spans=None, in_situ=None, in_situ_failure="its work depends on data"), None)
    parts = parts_of(variant)
    assert (parts.ft_us, parts.ft_parts) == (79.0, {})
    assert (parts.closure_error, parts.unmeasured["closure_error"]) == (None, "its work depends on data")


def test_outputs_not_compared_have_a_reason() -> None:
    variant = decompose(with_timing(output_check=None, output_failure="no float64 reference"), None)
    assert (variant.outputs_equal, variant.unmeasured["outputs_equal"]) == (None, "no float64 reference")
