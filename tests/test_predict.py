"""Predictions from a hand-made profile and a step of three ops, with every number worked out here.

Profile: launch call 3 (a library's) or 4 (ATen's), T_sys 6, L 2, g 1, in graphs 0.5, s 8.  ΔFT: gemm 10, elementwise 5;
ΔCT 7; glue 1 per call, 2 per module, 0.5 per function.  1,000 GB/s is 1e6 bytes per µs, 100 TFLOP/s 1e8 operations;
half of that is reached.  A graph: 8 + 1 per node more, first node after 9 + 0.2 per node more.

Step: linear (2e9 operations: 20 µs, at half the rate 40), relu (2e6 bytes: 4), add (3e6: 6); 2 modules, 4 functions.

eager: glue 3 · 1 + 2 · 2 + 4 · 0.5 = 9, in four gaps of 2.25; nine tenths of a call's time lie before its launch.
  linear 2.25 + 15.3 = 17.55, call until 20.55, runs 22.55 … 62.55; host 22.25
  relu   22.25 + 2.25 + 4.5 = 29, call until 33, runs 63.55 … 67.55; host 33.5
  add    33.5 + 2.25 + 4.5 = 40.25, call until 44.25, runs 68.55 … 74.55; host 44.75, and 47 behind the last gap
  T_wall = 74.55 + 8; ΔFT 10 + 5 + 5 + 9 = 29, ΔCT 7, launches 11; ΔKT 3 · 6.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from taxbreak_fx import hardware, schema
from taxbreak_fx.errors import UncoveredError, UsageError
from taxbreak_fx.hardware import (
    CompiledCosts,
    DeviceCosts,
    FamilyCost,
    FamilyGrid,
    GraphPoint,
    LaunchCosts,
    LibraryCost,
    MatrixRate,
    OpCost,
    Point,
    Profile,
    PythonCosts,
)
from taxbreak_fx.machine import HostScore
from taxbreak_fx.model import StepInfo, Variant
from taxbreak_fx.predict import VARIANTS, check_names, on_host, predict
from taxbreak_fx.predicted import (
    DryRun,
    FakeOp,
    FakeStep,
    Origin,
    PlannedAllocation,
    PlannedGraph,
    PlannedLaunch,
)
from taxbreak_fx.record import SourceLine
from taxbreak_fx.recording import Site
from taxbreak_fx.report.content import page
from taxbreak_fx.report.html import html
from taxbreak_fx.report.markdown import markdown
from taxbreak_fx.report.text import MAX_LINES, terminal
from taxbreak_fx.timeline import simulate
from taxbreak_fx.timeline_store import restored

LINE = SourceLine(file="/model/block.py", line=7)
STEP = StepInfo(phase="decode", batch=1, seq_len=8, dtype="bfloat16", device="cuda")
X, W, B = "bfloat16[1000x1000](1000,1)", "bfloat16[1000x1000](1,1000)", "bfloat16[1000](1)"


def profile(**more: Any) -> Profile:
    fields: dict[str, Any] = {
        "profile_version": hardware.PROFILE_VERSION,
        "name": "small",
        "origin": "by hand",
        "date": "2026-11-23",
        "host_score": HostScore(version=1, us=100.0),
        "launch": LaunchCosts(
            launch_us=3.0, context_us=4.0, t_sys_us=5.0, t_sys_traced_us=6.0, latency_us=2.0, gap_us=1.0,
            graph_gap_us=0.5, sync_us=8.0,
        ),
        "graphs": (
            GraphPoint(nodes=1, host_us=8.0, first_node_us=9.0),
            GraphPoint(nodes=101, host_us=108.0, first_node_us=29.0),
        ),
        "families": (
            FamilyCost(family="gemm", ft_us=10.0),
            FamilyCost(family="elementwise", ft_us=5.0),
            FamilyCost(family="host-sync", ft_us=30.0),
        ),
        "libraries": (LibraryCost(library="cuBLASLt", family="gemm", ct_us=7.0),),
        "python": PythonCosts(site_glue_us=1.0, module_glue_us=2.0, function_glue_us=0.5),
        "compiled": CompiledCosts(
            triton_us=6.0, triton_argument_us=0.5, extern_us=4.0, allocation_us=1.5, wrapper_us=2.0, guards_us=5.0,
            guard_us=0.1, frame_us=10.0, aot_us=3.0, cudagraph_us=20.0, cudagraph_input_us=2.0,
        ),
        "device": DeviceCosts(
            copy_gb_s=1_000.0,
            null_us=1.0,
            rates=(MatrixRate(dtype="bfloat16", tflops=100.0),),
            grids=tuple(
                FamilyGrid(family=name, dtype="bfloat16", efficiency=0.5) for name in ("gemm", "elementwise", "copy")
            ),
        ),
    }  # fmt: skip
    return Profile(**{**fields, **more})


def op(name: str, site: int | None, inputs: str = X, moved: tuple[int, int] = (0, 0), **more: Any) -> FakeOp:
    fields: dict[str, Any] = {"outputs": X, "dtype": "bfloat16", "device": "cuda", "flops": None, "kernels": 1}
    return FakeOp(
        op=name, inputs=inputs, site=site, read_bytes=moved[0], written_bytes=moved[1],
        **{**fields, "memops": 0, **more},
    )  # fmt: skip


ADDMM = op("aten.addmm.default", 0, f"{B}, {X}, {W}", (4_002_000, 2_000_000), flops=2_000_000_000, kernels=None)
OPS = [ADDMM, op("aten.relu.default", 1, moved=(1_000_000, 1_000_000)),
       op("aten.add.Tensor", 2, f"{X}, {X}", (2_000_000, 1_000_000))]  # fmt: skip
TARGETS = ["torch.nn.functional.linear", "torch.nn.functional.relu", "torch.add"]


def site(target: str, *ops: FakeOp, **more: Any) -> Site:
    names = tuple(one.op for one in ops)
    return Site(target=target, ops=names, source=LINE, dtype="bfloat16", leaf_keys=tuple(o.key for o in ops), **more)


def fake_step(targets: list[str] = TARGETS, ops: list[FakeOp] = OPS, **more: Any) -> FakeStep:
    sites = [site(target, *(o for o in ops if o.site == index)) for index, target in enumerate(targets)]
    fields: dict[str, Any] = {"modules": 2, "functions": 4, "assumptions": ["routing is assumed uniform"]}
    return FakeStep(
        model="three", target="NVIDIA H200", step=STEP, sites=sites, ops=ops, weight_bytes=0,
        versions={"torch": "2.13.0", "transformers": "5.17.0"}, seconds=0.1, **{**fields, **more},
    )  # fmt: skip


def launch(kind: str, target: str, **more: Any) -> PlannedLaunch:
    fields: dict[str, Any] = {
        "dtype": "bfloat16", "inputs": None, "outputs": None, "numels": {}, "arguments": None, "read_bytes": None,
        "written_bytes": None, "origins": [Origin(node="relu", op="aten.relu.default", source=LINE, module_path="h.0")],
    }  # fmt: skip
    return PlannedLaunch(kind=kind, target=target, **{**fields, **more})  # type: ignore[arg-type]


def planned_graph(**more: Any) -> PlannedGraph:
    fields: dict[str, Any] = {
        "compile_id": "0/0", "ops": 3, "break_reason": None, "reused": 0, "copied": 1, "copied_bytes": 8,
        "guards": 100, "allocations": [PlannedAllocation(buffer="buf0", size_bytes=2_000_000, before=0)],
        "launches": [
            launch("extern", "extern:addmm", inputs=f"{B}, {X}, {W}", outputs=X, read_bytes=1, written_bytes=1),
            launch("kernel", "triton:triton_poi_fused_0", arguments=3, read_bytes=2_000_000, written_bytes=2_000_000),
        ],
    }  # fmt: skip
    return PlannedGraph(**{**fields, **more})


def plan(*graphs: PlannedGraph) -> DryRun:
    return DryRun(
        model="three", target="NVIDIA H200", step=STEP, graphs=list(graphs) or [planned_graph()],
        assumptions=["products are not padded"], versions={"torch": "2.13.0"}, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def times(variant: Variant) -> tuple[float, float]:
    """T_wall and T_host."""
    assert variant.t_wall_us is not None and variant.t_host_us is not None
    return variant.t_wall_us.median, variant.t_host_us.median


def test_eager_is_what_was_worked_out() -> None:
    found = predict(fake_step(), "no plan", profile(), ["eager"]).variant("eager")
    assert times(found) == pytest.approx((82.55, 47.0))
    assert (found.issue_us, found.launch_us, found.t_wait_us) == pytest.approx((47.0, 11.0, 0.0))
    assert (found.launches, found.graph_launches, found.kernels, found.memops) == (3, 0, 3, 0)
    assert (found.device_active_us, found.device_sum_us) == pytest.approx((50.0, 50.0))
    terms = found.breakdown
    assert terms is not None
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((29.0, 7.0, 18.0))
    assert terms.ft_parts == pytest.approx({"python": 9.0, "ops": 20.0})
    assert terms.hdbi == pytest.approx(50 / (50 + 29 + 7 + 18))
    assert terms.hdbi_untraced == pytest.approx(50 / (50 + 29 + 7 + 15))


def test_rows_keep_line_and_family_and_add_up() -> None:
    found = predict(fake_step(), "no plan", profile(), ["eager"]).variant("eager")
    assert {(n.op, n.family, n.source, n.count) for n in found.nodes} == {
        ("aten.addmm.default", "gemm", LINE, 1),
        ("aten.relu.default", "elementwise", LINE, 1),
        ("aten.add.Tensor", "elementwise", LINE, 1),
    }
    assert found.device_sum_us == pytest.approx(sum(node.device_us or 0.0 for node in found.nodes))
    gemm = next(node for node in found.nodes if node.family == "gemm")
    assert (gemm.ft_us, gemm.ct_us, gemm.kt_us, gemm.device_us) == pytest.approx((10.0, 7.0, 6.0, 40.0))


def test_the_step_in_one_graph() -> None:
    # Three nodes: 8 + 2 in the call, the first starts at 9.4; 40 + 0.5 + 4 + 0.5 + 6 on the device, and s.
    found = predict(fake_step(), "no plan", profile(), ["eager-graph"]).variant("eager-graph")
    assert times(found) == pytest.approx((9.4 + 51.0 + 8.0, 10.0))
    assert (found.launches, found.graph_launches, found.kernels) == (1, 1, 3)
    terms = found.breakdown
    assert terms is not None
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((0.0, 0.0, 9.4))
    assert terms.hdbi == pytest.approx(50 / 59.4)


def test_inductor_is_what_was_worked_out() -> None:
    # Around 15 + 10 + 3, three lines of 2, a buffer 1.5, the extern call 4, the kernel 6 + 3 · 0.5: 47; ΔCT 7; two
    # launch calls of 3.  The product is eager's: 40 µs; 4e6 bytes of the kernel: 8.
    found = predict(fake_step(), plan(), profile()).variant("inductor")
    terms = found.breakdown
    assert terms is not None
    assert terms.ft_parts == pytest.approx(
        {"guards": 15.0, "frame": 10.0, "aot_wrapper": 3.0, "wrapper": 6.0, "allocations": 1.5, "extern_calls": 4.0,
         "triton_launchers": 7.5}
    )  # fmt: skip
    assert (terms.ct_us, found.launch_us) == pytest.approx((7.0, 6.0))
    assert times(found)[1] == pytest.approx(60.0)
    assert (found.launches, found.kernels, found.device_active_us) == (2, 2, pytest.approx(48.0))
    assert {(node.op, node.source, node.module_path) for node in found.nodes if node.kernels} == {
        ("extern:addmm", LINE, "h.*"),
        ("triton:triton_poi_fused_0", LINE, "h.*"),
    }


def test_reduce_overhead_counts_the_copy_s_launch_once() -> None:
    # Around 28; graph trees 20 + 2, of which 4 are the launch call of the copy; two nodes: 9 in the call, first at 9.2.
    found = predict(fake_step(), plan(), profile()).variant("reduce-overhead")
    terms = found.breakdown
    assert terms is not None
    assert (terms.ft_us, terms.ct_us, terms.kt_us) == pytest.approx((46.0, 0.0, 6.0 + 9.2))
    assert (found.launch_us, times(found)[1]) == pytest.approx((13.0, 59.0))
    assert (found.launches, found.graph_launches, found.kernels) == (2, 1, 3)


def test_a_graph_without_inputs_copies_none() -> None:
    made = predict(fake_step(), plan(planned_graph(copied=0, copied_bytes=0)), profile()).variant("reduce-overhead")
    assert (made.launches, made.kernels) == (1, 2)
    assert made.launch_us == pytest.approx(9.0)


def test_twice_the_host_score_is_twice_the_host() -> None:
    slow = on_host(profile(), 200.0)
    for name in VARIANTS:
        one, two = (predict(fake_step(), plan(), p).variant(name) for p in (profile(), slow))
        assert times(two)[1] == pytest.approx(2 * times(one)[1])
        assert two.device_sum_us == pytest.approx(one.device_sum_us)


def test_every_variant_keeps_its_identities() -> None:
    review = predict(fake_step(), plan(), profile())
    assert [variant.name for variant in review.variants] == list(VARIANTS)
    for variant in review.variants:
        terms = variant.breakdown
        assert variant.origin == "predicted" and terms is not None and variant.timeline is not None
        assert terms.ft_us is not None and terms.ct_us is not None and variant.issue_us is not None
        assert variant.issue_us == pytest.approx(terms.ft_us + terms.ct_us + (variant.launch_us or 0.0))
        assert times(variant)[1] == pytest.approx(variant.issue_us + (variant.t_wait_us or 0.0))
        assert simulate(restored(variant.timeline)).wall_us == pytest.approx(times(variant)[0], abs=0.1)
        assert variant.exposed is not None and variant.exposed.wall_us == pytest.approx(times(variant)[0])
    assert [(c.base, c.variant) for c in review.comparisons] == [
        ("eager", "inductor"),
        ("eager", "reduce-overhead"),
        ("eager", "eager-graph"),
        ("inductor", "reduce-overhead"),
    ]
    graph = next(c for c in review.comparisons if c.variant == "eager-graph")
    assert graph.removed.wall_us == pytest.approx(82.55 - 68.4)
    assert (graph.removed.ft_us, graph.removed.device_us) == pytest.approx((29.0, 0.0))


def test_a_wait_holds_the_host_and_is_not_counted_twice() -> None:
    # item(): ΔFT 30 holds the wait on an idle device, L 2 + copy 1 + s 8 = 11.  Glue 1 + 2 + 0.5 · 4 + … as one call:
    # (1 + 4 + 2) / 2 = 3.5 on each side.  Host: 3.5 + 0.9 · 19 = 20.6, copy 22.6 … 23.6, + s 8, + 1.9 + 3.5 = 37:
    # ΔFT 30 + 7, and T_wait = 0, since the device was idle.
    step = fake_step(["Tensor.item"], [op("aten._local_scalar_dense.default", 0, kernels=0, memops=1)])
    found = predict(step, "no plan", profile(), ["eager", "eager-graph"])
    eager = found.variant("eager")
    assert times(eager)[1] == pytest.approx(37.0)
    assert (eager.t_wait_us, eager.memops, eager.kernels) == (pytest.approx(0.0), 1, 0)
    graphed = found.variant("eager-graph")
    assert graphed.status == "skipped" and "waits 1 times" in (graphed.reason or "") and "block.py:7" in graphed.reason


def test_the_host_waits_for_kernels_before_a_copy_to_the_host() -> None:
    ops = [op("aten.relu.default", 0, moved=(25_000_000, 25_000_000)),
           op("aten._local_scalar_dense.default", 1, kernels=0, memops=1)]  # fmt: skip
    found = predict(fake_step(["torch.relu", "Tensor.item"], ops), "no plan", profile(), ["eager"]).variant("eager")
    assert found.t_wait_us is not None and found.t_wait_us > 50.0  # relu takes 100, of which the host hides some
    assert found.issue_us is not None and times(found)[1] == pytest.approx(found.issue_us + found.t_wait_us)


def test_what_the_profile_lacks_is_named_all_of_it() -> None:
    ops = [op("aten._fft_r2c.default", 0), op("aten.sort.stable", 1, kernels=None)]
    with pytest.raises(UncoveredError) as error:
        predict(fake_step(["torch.fft.rfft", "torch.sort"], ops), "no plan", profile())
    for what in ("torch.fft.rfft", "torch.sort", "device time of fft", "sort/scan in bfloat16"):
        assert what in str(error.value)
    # What is alike is said once.
    assert str(error.value).count("profile small knows") == str(error.value).count("calibrate again") == 1


def test_a_constant_that_is_missing_skips_the_variant_that_needs_it() -> None:
    bare = profile(compiled=CompiledCosts(), graphs=())
    found = predict(fake_step(), plan(), bare)
    assert found.variant("eager").status == "ok"
    reasons = {v.name: v.reason or "" for v in found.variants if v.status == "skipped"}
    assert set(reasons) == {"inductor", "reduce-overhead", "eager-graph"}
    assert "compiled." in reasons["inductor"] and "CUDA graph" in reasons["eager-graph"]


@pytest.mark.parametrize("unknown", [{"guards": None}, {"copied": None}])
def test_what_the_plan_does_not_tell_costs_the_variant_not_nothing(unknown: dict[str, None]) -> None:
    found = predict(fake_step(), plan(planned_graph(**unknown)), profile()).variant("reduce-overhead")
    assert found.status == "skipped" and "not known" in (found.reason or "")


def test_a_plan_that_failed_is_the_reason_of_compiled_variants_only() -> None:
    found = predict(fake_step(), "not planned: torch 9 is not covered", profile())
    assert {v.name: v.status for v in found.variants} == {
        "eager": "ok", "inductor": "skipped", "reduce-overhead": "skipped", "eager-graph": "ok",
    }  # fmt: skip
    assert found.variant("inductor").reason == "not planned: torch 9 is not covered"


def test_kernels_are_counted_as_the_profile_counted_them() -> None:
    entry = OpCost(
        target=TARGETS[0], ops=("aten.addmm.default",), family="gemm", library="cuBLASLt", tensors=3, ft_us=10.0,
        ct_us=7.0, kernels=2.0, memops=1.0, calls=4,
    )  # fmt: skip
    found = predict(fake_step(), "no plan", profile(ops=(entry,)), ["eager"]).variant("eager")
    assert (found.kernels, found.memops) == (4, 1)  # two and a fill of the product, one each of the others
    assert found.device_sum_us == pytest.approx(50.0)  # its device time is shared among them
    point = Point(bytes=6e6, flops=2e9, us=40.0, shape=(1000, 1000, 1000), kernels=3)
    grids = (FamilyGrid(family="gemm", dtype="bfloat16", points=(point,)), *profile().device.grids[1:])
    device = msgspec.structs.replace(profile().device, grids=grids)
    found = predict(fake_step(), "no plan", profile(ops=(entry,), device=device), ["eager"]).variant("eager")
    assert found.kernels == 5  # a measured product of that shape tells more than the call's mean


def test_an_uncounted_kernel_is_assumed_aloud() -> None:
    found = predict(fake_step(), "no plan", profile(), ["eager"]).variant("eager")
    assert any("1 ops are taken to launch one kernel each" in note for note in found.notes)


def test_calls_of_python_alone_lie_in_the_glue_unless_the_profile_has_them_apart() -> None:
    step = fake_step([*TARGETS, "Tensor.size"])
    base = times(predict(step, "no plan", profile(), ["eager"]).variant("eager"))[1]
    assert base == pytest.approx(48.0)  # one call more in the glue
    told = profile(python=PythonCosts(site_glue_us=1.0, module_glue_us=2.0, function_glue_us=0.5, torch_us=0.7))
    assert times(predict(step, "no plan", told, ["eager"]).variant("eager"))[1] == pytest.approx(48.7)


def test_the_ops_under_capture_are_those_of_the_graph() -> None:
    captured = fake_step(TARGETS[:2], OPS[:2])
    found = predict(fake_step(), "no plan", profile(), ["eager-graph"], captured)
    assert (found.variant("eager").kernels, found.variant("eager-graph").kernels) == (3, 2)
    why = predict(fake_step(), "no plan", profile(), ["eager-graph"], "needs data").variant("eager-graph")
    assert (why.status, why.reason) == ("skipped", "needs data")


def test_graph_breaks_are_said() -> None:
    found = predict(fake_step(), plan(planned_graph(), planned_graph(compile_id="1/0")), profile()).variant("inductor")
    assert any("breaks into 2 graphs" in note for note in found.notes)
    assert found.launches == 4


def test_reports_show_a_prediction_as_one() -> None:
    review = predict(fake_step(), plan(), profile())
    text = terminal(review)
    assert len(text.splitlines()) <= MAX_LINES and "eager (predicted)" in text and "written by hand" in text
    tables, notes = page(review)
    assert any("routing is assumed uniform" in note for note in notes) and tables
    for rendered in (markdown(review), html(review)):
        assert "predicted" in rendered and "small (written by hand 2026-11-23)" in rendered
    assert schema.decode(schema.encode(review), "r.json") == review
    # What a machine that nobody measured would score is not known, and no report shows a number for it.
    calibration = review.machine.calibration
    assert calibration.host_score is None and calibration.unmeasured["host_score"] == "the profile names no machine"
    assert "iterations/µs" not in html(review)


def test_names_and_scores_are_checked() -> None:
    assert check_names([]) == VARIANTS
    assert check_names(["inductor"]) == ("eager", "inductor")
    with pytest.raises(UsageError, match="'cudagraphs' is not predicted"):
        check_names(["cudagraphs"])
    for score in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="must be a positive number"):
            on_host(profile(), score)
    with pytest.raises(UsageError, match="has no host score"):
        on_host(profile(host_score=None), 100.0)
