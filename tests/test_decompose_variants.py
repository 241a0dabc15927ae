"""The equations on compiled, graphed and CPU-device recordings: exact microseconds, and a reason for every null."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest
from fake_recording import (
    ADD,
    ADDMM,
    FRAME,
    SITE_US,
    SITES,
    VIEW,
    activity,
    calibration,
    clock,
    eager_recording,
    eager_timing,
    eager_trace,
    kernel_of,
    key,
    launch,
    parts_of,
    recording,
    site,
    spans,
    step,
    timing,
    trace,
    waiting,
)

from taxbreak_fx.breakdown import decompose, host_reference
from taxbreak_fx.breakdown_cpu import NO_BASE
from taxbreak_fx.breakdown_library import NO_CALLS
from taxbreak_fx.recording import Frame, Recording, Replay, Spans, Timing, Trace

# --- compiled and graphed variants ----------------------------------------------------------------------------------


def compiled(variant: str, **fields: Any) -> Recording:
    """Two graphs of one and two sites: 51 µs of sites and 15 of glue, 3 of Inductor's runtime, 16 around the graphs."""
    sites = [
        site("aten.empty_strided.default", "aten.empty_strided.default", graph=1),
        site("triton:triton_poi_fused_add_0", graph=2),
        site("extern:addmm", ADDMM, graph=2),
    ]
    if variant == "dynamo":
        sites = [msgspec.structs.replace(s, graph=g) for s, g in zip(SITES, (1, 2, 2), strict=True)]
    fields.setdefault("frame", FRAME)
    timed = timing(
        variant, sites=sites, spans=spans_of(variant), in_situ=clock(SITE_US, 100.0), replays=eager_timing().replays
    )
    traced = eager_trace(variant=variant)
    return msgspec.structs.replace(recording(timed, traced), **fields)


def spans_of(variant: str) -> Spans:
    """The spans of ``compiled``: a captured graph has no runtime of Inductor's."""
    runtime = 3.0 if variant == "inductor" else None
    return spans(sum(SITE_US), 15.0, host_us=100.0, around_us=16.0, runtime_us=runtime)


def test_parts_of_the_captured_graph() -> None:
    # guards 9, frame 16 − 9; glue 15; ops = 51 − 13 − 8 = 30; ΔFT 79 → 79 − 61 unexplained
    parts = parts_of(decompose(compiled("dynamo"), eager_recording()))
    assert parts.ft_parts == {"guards": 9.0, "frame": 7.0, "node_python": 15.0, "ops": 30.0, "unattributed": 18.0}
    # pieces 16 + 15 + 51 of 100
    assert parts.closure_error == pytest.approx(-0.18)


def test_parts_of_inductors_wrapper() -> None:
    # allocation 1; triton launcher 30 − 4; extern 20 − 13 − 4; wrapper 15; guards 9, frame 16 − 9, runtime 3; ΔFT 79
    parts = parts_of(decompose(compiled("inductor"), eager_recording()))
    assert parts.ft_parts == {
        "guards": 9.0,
        "frame": 7.0,
        "aot_wrapper": 3.0,
        "wrapper": 15.0,
        "triton_launchers": 26.0,
        "allocations": 1.0,
        "extern_calls": 3.0,
        "unattributed": 15.0,
    }
    assert parts.closure_error == pytest.approx((16 + 3 + 51 + 15 - 100) / 100)


def test_spans_and_guards_are_brought_to_the_speed_of_the_pairs_but_the_closure_is_raw() -> None:
    # The clocked pass met a host twice as slow: around 32, glue 30, sites 102 of 200 stand for half of that.
    # The frame stage met eager at 125, the pairs at 100: guards 9 stand for 7.2.
    record = compiled("dynamo", frame=msgspec.structs.replace(FRAME, eager_us=125.0))
    assert record.timing is not None
    slow = spans(2 * sum(SITE_US), 30.0, host_us=200.0, around_us=32.0)
    timed = msgspec.structs.replace(record.timing, spans=slow)
    parts = parts_of(decompose(msgspec.structs.replace(record, timing=timed), eager_recording()))
    known = {"guards": 7.2, "frame": 16.0 - 7.2, "node_python": 15.0, "ops": 30.0}
    assert parts.ft_parts == pytest.approx({**known, "unattributed": 18.0})
    assert parts.closure_error == pytest.approx((32 + 30 + 102 - 200) / 200)


def test_a_compiled_variant_without_frame_times_says_so() -> None:
    record = compiled("inductor", frame=None, failures={"frame": "the worker was killed by SIGKILL"})
    found = decompose(record, eager_recording())
    parts = parts_of(found)
    # what surrounds the graphs and Inductor's code was clocked all the same
    assert "guards" not in parts.ft_parts and "frame" not in parts.ft_parts
    assert (parts.ft_parts["guards_and_frame"], parts.ft_parts["aot_wrapper"]) == (16.0, 3.0)
    assert parts.closure_error == pytest.approx((16 + 3 + 51 + 15 - 100) / 100)
    assert "guards are not told from the frame around them: the worker was killed by SIGKILL" in found.notes


def test_a_host_that_was_busy_meanwhile_is_noted() -> None:
    record = compiled("inductor")
    assert record.timing is not None
    # So many steps that they take 2 s, half of it the base's.
    timed = msgspec.structs.replace(record.timing, wall_us=[10_000.0] * 100, base_wall_us=[10_000.0] * 100)

    def notes(preempted: int, device: Literal["cuda", "cpu"] = "cuda") -> list[str]:
        timing = msgspec.structs.replace(timed, preempted=preempted)
        found = decompose(msgspec.structs.replace(record, timing=timing, device=device), None)
        return [note for note in found.notes if "busy" in note]

    assert notes(0) == notes(40) == []
    assert ["took the CPU away 41 times in 2 s of timed steps" in note for note in notes(41)] == [True]
    assert notes(400, "cpu") == []  # threads of the step itself


def test_a_compiled_variant_without_in_situ_times_has_no_parts_and_says_so() -> None:
    record = compiled("inductor")
    assert record.timing is not None
    lost = msgspec.structs.replace(record.timing, spans=None, in_situ=None, in_situ_failure="depends on data")
    parts = parts_of(decompose(msgspec.structs.replace(record, timing=lost), eager_recording()))
    assert (parts.ft_us, parts.ft_parts) == (79.0, {})
    assert (parts.closure_error, parts.unmeasured["closure_error"]) == (None, "depends on data")


def test_captured_graphs_alone_have_nothing_around_them() -> None:
    # Measured inside a backend: no frame, no guards.  Sites 51, glue 15, runtime 3.
    record = compiled("inductor", frame=None, scope="captured graphs", failures={"frame": "outside"})
    assert record.timing is not None
    inside = msgspec.structs.replace(spans_of("inductor"), around_us=None)
    timed = msgspec.structs.replace(record.timing, spans=inside)
    found = decompose(msgspec.structs.replace(record, timing=timed), eager_recording())
    parts = parts_of(found)
    assert not {"guards", "frame", "guards_and_frame"} & set(parts.ft_parts)
    assert (parts.ft_parts["wrapper"], parts.ft_parts["aot_wrapper"]) == (15.0, 3.0)
    assert parts.closure_error == pytest.approx((51 + 15 + 3 - 100) / 100)
    assert not any("guards" in note for note in found.notes)


def graphed(variant: str, frame: Frame | None = FRAME, calls: dict[str, int] | None = None) -> Recording:
    """One graph of three kernels, one of them on a second stream, behind an input copy of its own."""
    activities = [
        activity("copy", 100.0, 2.0, launch=0, kind="memcpy"),
        activity(kernel_of(ADD), 110.0, 10.0, launch=1),
        activity(kernel_of(ADD), 120.0, 10.0, launch=1),
        activity(kernel_of(ADDMM), 125.0, 10.0, launch=1, stream=9),
    ]
    traced = step(activities, [launch("memop"), launch("graph", latency_us=30.0, activities=3)])
    heard = {"cublas": 0, "cublaslt": 0, "cudnn": 0} if calls is None else calls
    around = None if variant == "eager-graph" else 16.0
    clocked = spans(12.0, 36.0 - (around or 0.0), host_us=50.0, around_us=around)
    timed: Timing = timing(
        variant, host_us=50.0, graph_launch_us=12.0, spans=clocked, in_situ_failure="a CUDA graph is one launch"
    )
    traces: Trace = trace(traced, variant, graph_latency_us=[21.0], library_calls=heard)
    return recording(timed, traces, frame)


@pytest.mark.parametrize(
    ("variant", "parts"),
    [
        # ΔFT = 50 − 0 − 12 = 38.  Around the graph 16: guards 9, frame 7; glue 20: AOT 3, runtime 17; 2 unexplained.
        ("reduce-overhead", {"guards": 9.0, "frame": 7.0, "aot_wrapper": 3.0, "cudagraph_runtime": 17.0}),
        ("cudagraphs", {"guards": 9.0, "frame": 7.0, "aot_wrapper": 3.0, "cudagraph_runtime": 17.0}),
        ("eager-graph", {"graph_wrapper": 36.0}),
    ],
)
def test_a_graphed_step_is_one_launch_with_its_own_latency(variant: str, parts: dict[str, float]) -> None:
    found = decompose(graphed(variant), eager_recording())
    assert (found.launches, found.graph_launches, found.kernels, found.memops) == (1, 1, 3, 1)
    assert found.launch_us == 12.0
    breakdown = parts_of(found)
    assert (breakdown.ct_us, breakdown.ct_source) == (0.0, NO_CALLS)
    assert (breakdown.ft_us, breakdown.kt_us) == (38.0, 21.0)
    assert breakdown.ft_parts == {**parts, "unattributed": 2.0}
    # copy 2 + kernels 110 … 135; orchestration 38 + 0 + 21
    assert found.device_active_us == 27.0
    assert breakdown.hdbi == pytest.approx(27.0 / (27.0 + 59.0))
    # 36 around and in the graph's wrapper, 12 in the launch
    assert breakdown.closure_error == pytest.approx((36.0 + 12.0 - 50.0) / 50.0)


def test_a_graphed_step_without_frame_times_keeps_aot_in_the_runtime() -> None:
    found = decompose(graphed("cudagraphs", frame=None), eager_recording())
    assert parts_of(found).ft_parts == {"guards_and_frame": 16.0, "cudagraph_runtime": 20.0, "unattributed": 2.0}
    assert parts_of(found).closure_error == pytest.approx(-0.04)


def test_library_calls_heard_inside_a_graphed_step_make_ct_null_not_zero() -> None:
    breakdown = parts_of(decompose(graphed("cudagraphs", calls={"cublas": 2}), eager_recording()))
    assert breakdown.ct_us is None and breakdown.ft_us is None
    assert breakdown.unmeasured["ct_us"] == "library calls inside a graphed variant: {'cublas': 2}"


def test_a_graph_whose_latency_was_not_measured_leaves_kt_null() -> None:
    record = graphed("cudagraphs")
    assert record.trace is not None
    record = msgspec.structs.replace(record, trace=msgspec.structs.replace(record.trace, graph_latency_us=[]))
    breakdown = parts_of(decompose(record, None))
    assert breakdown.unmeasured["kt_us"] == "the latency of 0 of 1 graph launches was measured"
    assert breakdown.hdbi is None


@pytest.mark.parametrize(("wall", "kt"), [(40.0, 13.0), (20.0, None)])
def test_a_graph_latency_that_the_wall_time_refutes_is_bounded_with_a_note(wall: float, kt: float | None) -> None:
    # device 27: beside it the wall leaves 13 of the 21 traced, or nothing
    record = graphed("cudagraphs")
    assert record.timing is not None
    timed = msgspec.structs.replace(record.timing, wall_us=[wall] * 10)
    found = decompose(msgspec.structs.replace(record, timing=timed), None)
    assert parts_of(found).kt_us == kt
    assert [note for note in found.notes if note.startswith("graph launch latency")]


def test_a_step_without_graphs_has_no_note_on_their_latency() -> None:
    short = decompose(eager_recording(timing=eager_timing(wall_us=30.0)), None)  # device-bound: 60 µs traced
    assert not any("latency" in note for note in short.notes)


def test_a_device_that_is_active_for_longer_than_the_step_is_noted() -> None:
    whole = decompose(eager_recording(), None)
    assert whole.notes == [] and whole.device_active_us is not None
    shorter = decompose(eager_recording(timing=eager_timing(wall_us=whole.device_active_us - 3.0)), None)
    (note,) = shorter.notes
    assert f"active for {whole.device_active_us:,.0f} µs while traced, in a step that takes" in note


def test_a_variant_that_graphed_nothing_says_so() -> None:
    timed = timing("reduce-overhead", graph_launch_us=0.0)
    found = decompose(recording(timed, eager_trace(), FRAME), eager_recording())
    assert "nothing was graphed: the step made no CUDA graph launch" in found.notes
    assert found.launch_us == 8.0


def test_every_kind_of_variant_has_parts_that_sum_to_ft() -> None:
    records = [eager_recording(), waiting(), compiled("dynamo"), compiled("inductor")]
    records += [graphed(name) for name in ("reduce-overhead", "cudagraphs", "eager-graph")]
    for record in records:
        breakdown = parts_of(decompose(record, eager_recording()))
        assert breakdown.ft_us is not None and breakdown.ft_parts
        assert sum(breakdown.ft_parts.values()) == pytest.approx(breakdown.ft_us)


# --- the CPU device -------------------------------------------------------------------------------------------------

NONE_HERE = "the CPU device launches nothing"


def smallest(op: str, host_us: float | None) -> Replay:
    """A smallest-shape replay."""
    return Replay(key=key(op), level="smallest", op=op, dtype="bfloat16", host_us=host_us)


def on_cpu(replays: list[Replay], variant: str = "eager", **fields: Any) -> Recording:
    """The reference step on the CPU device."""
    timed = eager_timing(variant=variant, peak_memory_bytes=None, replays=replays)
    timed = msgspec.structs.replace(timed, **fields)
    return recording(timed, None, device="cpu", floors=calibration(None, None))


def test_cpu_identity_is_exact() -> None:
    # base = add 6.  addmm at its smallest 9: dispatch 6, library 3, device 30 − 9 = 21.  add: device 20 − 6 = 14.
    variant = decompose(on_cpu([smallest(ADDMM, 9.0), smallest(ADD, 6.0)]), None)
    parts = parts_of(variant)
    assert (variant.device_active_us, variant.device_sum_us, parts.ct_us) == (35.0, 35.0, 3.0)
    assert parts.ft_us == 100.0 - 3.0 - 35.0
    assert parts.ft_us + parts.ct_us + variant.device_active_us == 100.0
    assert parts.orchestration_us == 65.0  # no ΔKT
    assert parts.hdbi == 0.35
    # dispatch: the Python-only call 1, and 6 for each op
    assert parts.ft_parts == {"dispatch": 13.0, "python": 49.0}
    assert (variant.t_wait_us, variant.issue_us) == (0.0, 100.0)
    assert (parts.kt_us, parts.unmeasured["kt_us"]) == (None, NONE_HERE)
    assert (variant.launches, variant.unmeasured["launches"]) == (None, NONE_HERE)
    assert {node.op: node.match_tier for node in variant.nodes} == {
        "aten.linear.default": "smallest shape",
        ADD: "smallest shape",
    }


def test_cpu_dispatch_falls_back_to_the_family_then_the_native_median_and_says_so() -> None:
    mul, cumsum, copied = "aten.mul.Tensor", "aten.cumsum.default", "aten.index_select.default"
    sites = [site("torch.add", ADD), site("torch.mul", mul), site("torch.cumsum", cumsum)]
    # add's family has mul: 4.  cumsum's has no replay: the native median of mul 4 and index_select 8 is 6.
    replays = [smallest(ADD, None), smallest(mul, 4.0), smallest(cumsum, None), smallest(copied, 8.0)]
    rows = {node.op: node for node in decompose(on_cpu(replays, sites=sites), None).nodes}
    assert (rows[ADD].match_tier, rows[ADD].ft_us, rows[ADD].device_us) == ("family median", 4.0, 1.0 - 4.0)
    assert (rows[mul].match_tier, rows[mul].device_us) == ("smallest shape", 26.0)
    assert (rows[cumsum].match_tier, rows[cumsum].ft_us) == ("native median", 6.0)


def test_cpu_rows_show_their_weakest_tier() -> None:
    sites = [site("torch.add", ADD), site("torch.add", ADD), site("f", "aten.cumsum.default", ADD)]
    sites[1] = msgspec.structs.replace(sites[1], leaf_keys=(key(ADD, "other"),))
    rows = {node.op: node for node in decompose(on_cpu([smallest(ADD, 4.0)], sites=sites), None).nodes}
    assert rows[ADD].match_tier == "family median"  # one call at its smallest shape, one by its family
    assert rows[f"aten.cumsum.default+{ADD}"].match_tier == "native median"
    nothing = decompose(on_cpu([], sites=sites), None)
    assert {node.match_tier for node in nothing.nodes} == {"not replayed"}
    assert nothing.device_active_us == 51.0


def test_cpu_views_and_fused_kernels() -> None:
    sites = [site("Tensor.view", VIEW), site("cpp:cpp_fused_add_0", graph=1), site("torch.add", ADD)]
    variant = decompose(on_cpu([smallest(ADD, 6.0)], sites=sites), None)
    rows = {node.op: node for node in variant.nodes}
    assert (rows[VIEW].ft_us, rows[VIEW].device_us, rows[VIEW].match_tier) == (1.0, 0.0, None)
    fused = rows["cpp:cpp_fused_add_0"]
    assert (fused.ft_us, fused.ct_us, fused.device_us) == (0.0, 0.0, 30.0)


@pytest.mark.parametrize(("variant", "wrapper"), [("dynamo", "node_python"), ("inductor", "wrapper")])
def test_cpu_parts_of_a_compiled_variant(variant: str, wrapper: str) -> None:
    record = msgspec.structs.replace(
        on_cpu(
            [smallest(ADDMM, 9.0), smallest(ADD, 6.0)],
            variant,
            sites=compiled("dynamo").timing.sites,  # type: ignore[union-attr]
            spans=spans_of(variant),
        ),
        frame=FRAME,
    )
    parts = parts_of(decompose(record, None))
    surroundings = {"guards": 9.0, "frame": 7.0} | ({"aot_wrapper": 3.0} if variant == "inductor" else {})
    known = {"dispatch": 13.0, **surroundings, wrapper: 15.0}
    assert parts.ft_parts == {**known, "unattributed": pytest.approx(62.0 - sum(known.values()))}
    assert parts.closure_error == pytest.approx((51.0 + 15.0 + sum(surroundings.values()) - 100.0) / 100.0)


def test_cpu_without_in_situ_times_or_frame() -> None:
    lost = decompose(on_cpu([], spans=None, in_situ=None, in_situ_failure="depends on data"), None)
    assert lost.unmeasured["device_active_us"] == "depends on data"
    assert {parts_of(lost).unmeasured[term] for term in ("ft_us", "ct_us", "hdbi", "closure_error")} == {
        "depends on data"
    }
    frameless = msgspec.structs.replace(
        on_cpu([smallest(ADDMM, 9.0), smallest(ADD, 6.0)], "dynamo", spans=spans_of("dynamo")), failures={"frame": "no"}
    )
    found = decompose(frameless, None)
    # ΔFT 62, of which 13 + 16 + 15 are known
    known = {"dispatch": 13.0, "guards_and_frame": 16.0, "node_python": 15.0}
    assert parts_of(found).ft_parts == {**known, "unattributed": 18.0}
    assert parts_of(found).closure_error == pytest.approx((16 + 15 + 51 - 100) / 100)
    assert "guards are not told from the frame around them: no" in found.notes


def test_cpu_device_time_below_zero_keeps_its_sign_and_has_no_hdbi() -> None:
    # dispatch 40 for an op of 20 µs, 40 + (90 − 40) for one of 30: device = −20 − 60
    variant = decompose(on_cpu([smallest(ADDMM, 90.0), smallest(ADD, 40.0)]), None)
    assert variant.device_active_us == -80.0
    assert parts_of(variant).unmeasured["hdbi"] == "negative_residual: device time is below zero"


def test_cpu_calls_longer_than_the_step_leave_an_orchestration_below_zero_and_no_hdbi() -> None:
    # In situ 1 + 30 + 200 of T_host 100; dispatch 9 and 6: device 21 + 194 = 215, T_Orchestration 100 − 215
    long = on_cpu([smallest(ADDMM, 9.0), smallest(ADD, 6.0)], in_situ=clock([1.0, 30.0, 200.0], 100.0))
    variant = decompose(long, None)
    parts = parts_of(variant)
    assert (variant.device_active_us, parts.orchestration_us, parts.hdbi) == (215.0, -115.0, None)
    assert parts.unmeasured["hdbi"] == "negative_residual: T_Orchestration is below zero"


def test_cpu_library_calls_alone_take_eagers_native_median_at_this_hosts_speed() -> None:
    # Eager's T_host is 100; its own pairs beside this variant took 150: the native median 6 stands for 9.
    eager = on_cpu([smallest(ADDMM, 9.0), smallest(ADD, 6.0)])
    sites = [site("extern:addmm", ADDMM, graph=1)]
    slow = {"in_situ": clock([40.0], host_us=100.0), "base_host_us": [150.0] * 10, "sites": sites}
    variant = decompose(on_cpu([smallest(ADDMM, 14.0)], "inductor", **slow), eager)
    assert parts_of(variant).ct_us == 14.0 - 9.0
    assert variant.device_active_us == 40.0 - 14.0


def test_cpu_library_time_without_any_native_op_is_null_and_not_zero() -> None:
    sites = [site("extern:addmm", ADDMM, graph=1), site("cpp:cpp_fused_add_0", graph=1)]
    alone = on_cpu([smallest(ADDMM, 14.0)], "inductor", sites=sites, in_situ=clock([40.0, 5.0], host_us=100.0))
    for eager in (None, on_cpu([smallest(ADDMM, 9.0)])):
        variant = decompose(alone, eager)
        parts = parts_of(variant)
        assert {name: parts.unmeasured[name] for name in ("ct_us", "ft_us", "closure_error")} == dict.fromkeys(
            ("ct_us", "ft_us", "closure_error"), NO_BASE
        )
        # What lies outside the device is known all the same: 100 − (40 − 14) − 5
        assert (variant.device_active_us, parts.orchestration_us, parts.hdbi) == (31.0, 69.0, 0.31)
        rows = {node.op: node for node in variant.nodes}
        assert (rows["extern:addmm"].ct_us, rows["extern:addmm"].unmeasured["ct_us"]) == (None, NO_BASE)
        assert (rows["cpp:cpp_fused_add_0"].ft_us, rows["cpp:cpp_fused_add_0"].ct_us) == (0.0, 0.0)


def test_guards_that_could_not_be_told_apart_say_why() -> None:
    unskippable = Frame(
        guards_us=None, guards_failure="RuntimeError: Recompilation triggered", aot_us=3.0, eager_us=100.0
    )
    found = decompose(compiled("dynamo", frame=unskippable), eager_recording())
    assert parts_of(found).ft_parts["guards_and_frame"] == 16.0 and "guards" not in parts_of(found).ft_parts
    assert any("Recompilation triggered" in note for note in found.notes)


def test_the_hosts_score_of_a_variant_is_eagers_at_the_speed_that_eager_had_in_its_pairs() -> None:
    eager = timing("eager", host_us=100.0, reference_us=[300.0, 310.0, 320.0])
    slow = timing("inductor", base_host_us=[160.0] * 10, reference_us=[900.0])  # a few rounds that met a slower moment
    assert host_reference(eager, eager) == host_reference(eager, None) == 310.0
    assert host_reference(slow, eager) == pytest.approx(310.0 * 1.6)
    assert host_reference(slow, None) == 900.0
    unscored = msgspec.structs.replace(eager, reference_us=[])
    assert host_reference(slow, unscored) == 900.0 and host_reference(unscored, unscored) is None
    found = decompose(recording(slow, None), recording(eager, None))
    assert found.host_reference_us == pytest.approx(310.0 * 1.6)
