"""Measuring a profile: the real code on the CPU at tiny sizes, and the arithmetic between times and entries by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from sample_review import sample_review
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from taxbreak_fx import hardware, profile_measure
from taxbreak_fx import hardware_costs as costs
from taxbreak_fx import profile_measure_device as device_grid
from taxbreak_fx.call_counts import call_counts
from taxbreak_fx.hardware import FitStep, Profile
from taxbreak_fx.host_reference import reference_us
from taxbreak_fx.machine import SCORE_VERSION, DevicePath, HostScore, LaunchPath
from taxbreak_fx.profile_measure import Plan, measure_profile
from taxbreak_fx.profile_measure_compiled import (
    CompiledStep,
    GuardedStep,
    cudagraph_costs,
    guard_costs,
    inductor_costs,
    launcher_arguments,
)
from taxbreak_fx.profile_measure_draft import HOST_ONLY, NO_CUDA, Draft, assemble
from taxbreak_fx.profile_measure_fit import (
    NEGATIVE,
    Row,
    family_costs,
    glue_costs,
    library_costs,
    line,
    non_negative,
    op_costs,
)
from taxbreak_fx.profile_measure_steps import (
    FITS,
    Fit,
    MeasuredStep,
    fit_workload,
    operators_workload,
)
from taxbreak_fx.profile_measure_text import profile_text
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import InSitu, LibrarySite, LibraryTimes, Site, Spans
from taxbreak_fx.stages import INTERRUPTED
from taxbreak_fx.supervisor import Event

TINY = Plan(
    fits=(Fit("gpt2", 1, "prefill"), Fit("Llama-3.2-1B", 1, "decode")),
    guarded=(Fit("gpt2", 1, "prefill"), Fit("gpt2", 3, "prefill")),
    inductor=(),
    pass_s=0.01,
)
NOTHING = Plan(fits=(), operators=False, guarded=(), inductor=(), pass_s=0.01)


@pytest.fixture(scope="module")
def measured() -> tuple[Profile, list[Event]]:
    events: list[Event] = []
    return measure_profile("cpu", "here", 600.0, events.append, TINY), events


def test_the_parts_of_the_host_are_measured_on_a_cpu(measured: tuple[Profile, list[Event]], tmp_path: Path) -> None:
    profile, events = measured
    assert (profile.name, profile.origin, profile.host_factor) == ("here", "measured", None)
    assert profile.host_score is not None and profile.host_score.us > 0
    assert profile.machine is not None and profile.machine.device == "cpu"
    assert HOST_ONLY in profile.notes
    assert profile.why_missing("launch.launch_us") == profile.why_missing("device.copy_gb_s") == NO_CUDA
    assert profile.compiled.extern_us is not None and profile.compiled.allocation_us is not None
    assert {row.family for row in profile.families} >= {"gemm", "attention", "convolution", "sort/scan", "index"}
    assert [step.name for step in profile.fit_steps] == ["operators", *(fit.name for fit in TINY.fits)]
    hardware.save(profile, tmp_path / "p.json")
    assert hardware.load(tmp_path / "p.json") == profile
    assert [e.stage for e in events if e.kind == "failed"] == []
    assert events[-1].done == events[-1].total and {e.kind for e in events} == {"start", "done"}


def test_what_is_null_has_a_reason(measured: tuple[Profile, list[Event]]) -> None:
    profile, _ = measured
    for section in ("launch", "python", "compiled", "device"):
        record = getattr(profile, section)
        for name in record.__struct_fields__:
            if getattr(record, name) is None:
                assert profile.why_missing(f"{section}.{name}") != hardware.ABSENT, f"{section}.{name}"
            else:
                assert f"{section}.{name}" not in profile.unmeasured


def test_a_step_of_the_fit_is_covered_by_its_profile(measured: tuple[Profile, list[Event]]) -> None:
    profile, _ = measured
    step = MeasuredStep("again", fit_workload(TINY.fits[0], "cpu"), "cpu", 0.01)
    calls = [row.call for row in step.rows(None)]
    costs.require_covered(profile, calls)
    assert {costs.host_us(profile, call).basis for call in calls} == {"call"}
    counts = next(found for found in profile.fit_steps if found.name == TINY.fits[0].name)
    assert (counts.sites, counts.modules, counts.functions) == (len(calls), step.modules, step.functions)
    # On the CPU a call's cost is all of its in-situ time: nothing is lost between sites and rows.
    assert sum(row.ft_us for row in step.rows(None)) == pytest.approx(sum(step.clock.site_us))
    more = MeasuredStep("deeper", fit_workload(Fit("gpt2", 2, "prefill"), "cpu"), "cpu", 0.01)
    # Block, two norms, attention and MLP with two products each, two dropouts, activation.
    assert len(more.rows(None)) > len(calls) and more.modules - step.modules == 12


def test_the_table_names_units_and_what_is_missing(measured: tuple[Profile, list[Event]]) -> None:
    text = profile_text(measured[0])
    assert text.startswith("here (measured 20")
    assert "ΔFT of gemm" in text and "µs" in text and HOST_ONLY in text
    assert any(row.startswith("copy bandwidth") and NO_CUDA in row for row in text.splitlines())
    assert len(text.splitlines()) < 50


def test_a_section_that_fails_costs_its_own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, float]:
        raise RuntimeError("boom")

    monkeypatch.setattr(profile_measure, "python_layers", broken)
    monkeypatch.setattr(profile_measure, "measure_inductor", broken)
    profile = measure_profile("cpu", None, 600.0, lambda _: None, NOTHING)
    assert profile.name == "cpu"
    assert profile.python.module_us is None
    assert profile.why_missing("python.module_us") == "Python layers: RuntimeError: boom"
    assert profile.why_missing("compiled.extern_us") == "inductor, program: RuntimeError: boom"
    assert profile.machine is not None and profile.host_score is not None
    hardware.decode(hardware.encode(profile), "p")


def test_a_spent_budget_is_a_reason() -> None:
    profile = measure_profile("cpu", None, 1e-9, lambda _: None, TINY)
    assert "budget" in profile.why_missing("python.module_us") and "budget" in profile.why_missing("ops")
    assert profile.machine is None and profile.ops == ()
    hardware.decode(hardware.encode(profile), "p")


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_measure, "fit_workload", stop)
    profile = measure_profile("cpu", None, 600.0, lambda _: None, Plan(fits=FITS[:1], operators=False, pass_s=0.01))
    assert INTERRUPTED in profile.notes and profile.python.module_us is not None
    assert profile.why_missing("compiled.extern_us").endswith(INTERRUPTED)
    monkeypatch.setattr(profile_measure, "reference_us", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_profile("cpu", None, 600.0, lambda _: None, NOTHING)


def test_the_reference_workload_has_a_time_per_round() -> None:
    times = reference_us(5)
    assert len(times) == 5 and min(times) > 0


def test_fits_leave_out_what_predictions_are_tested_on() -> None:
    names = {fit.model for fit in FITS}
    assert names == {"gpt2", "Llama-3.2-1B", "OLMoE-1B-7B", "Mixtral-8x7B"}
    assert len({fit.name for fit in FITS}) == len(FITS)


def test_the_program_of_operators_runs_the_same_each_time() -> None:
    workload = operators_workload("cpu")
    with torch.no_grad():
        torch.testing.assert_close(workload.run(), workload.run())


class _Inner(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return _helper(x)


class _Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _Inner(), _Inner()

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


def _helper(x: Any) -> Any:
    return torch.nn.functional.gelu(x)


def test_calls_of_modules_and_functions_are_counted() -> None:
    module, x = _Outer(), torch.zeros(2)
    # Three modules; functions: the lambda, three forwards and two helpers.
    assert call_counts(lambda: module(x)) == (3, 6)


def _row(target: str, ft_us: float, ct_us: float | None = None, **more: Any) -> Row:
    call = costs.Call(
        target=target,
        ops=more.pop("ops", (f"aten.{target}.default",)),
        family=more.pop("family", "gemm"),
        library=more.pop("library", "cuBLAS"),
        tensors=more.pop("tensors", 2),
    )
    return Row(call, ft_us, ct_us, **more)


def test_rows_become_entries() -> None:
    rows = [_row("mm", us, 8.0, kernels=1, memops=0) for us in (4.0, 5.0, 6.0)]
    rows += [_row("mm", 20.0, 9.0, ops=("aten.bmm.default",), kernels=2, memops=0), _row("bad", -1.0, 2.0)]
    rows += [_row("odd", 3.0, -0.5, family="convolution", library="cuDNN")]
    found, left_out = op_costs(rows)
    assert left_out == {"ops.bad": NEGATIVE}
    by_ops = {entry.ops: entry for entry in found}
    assert (by_ops[("aten.mm.default",)].ft_us, by_ops[("aten.mm.default",)].calls) == (5.0, 3)
    assert by_ops[("aten.bmm.default",)].kernels == 2
    assert by_ops[("aten.odd.default",)].ct_us is None
    assert [(row.library, row.family, row.ct_us) for row in library_costs(found)] == [("cuBLAS", "gemm", 8.5)]
    assert [(row.family, row.tensors, row.ft_us) for row in family_costs(found) if row.family == "gemm"] == [
        ("gemm", None, 12.5),
        ("gemm", 2, 12.5),
    ]


def test_a_number_of_kernels_that_hangs_on_sizes_is_none() -> None:
    rows = [_row("sort", 5.0, kernels=2), _row("sort", 5.0, kernels=11), _row("mm", 5.0, kernels=1), _row("mm", 5.0)]
    assert {entry.target: entry.kernels for entry in op_costs(rows)[0]} == {"sort": None, "mm": 1}


def test_a_burst_on_the_host_does_not_move_an_entry() -> None:
    rows = [_row("mm", 5.0) for _ in range(19)] + [_row("mm", 5_000.0)]
    assert op_costs(rows)[0][0].ft_us == 5.0


def test_glue_is_recovered_from_steps_that_hold_it_exactly() -> None:
    counts = [(100, 20, 50), (200, 10, 90), (50, 60, 10), (150, 30, 30)]
    steps = [
        FitStep(
            name=str(s), sites=s, modules=m, functions=f, host_us=1.0, sites_us=0.0, glue_us=2.0 * s + 3.0 * m + 0.5 * f
        )
        for s, m, f in counts
    ]
    glue = glue_costs(steps)
    assert glue == (pytest.approx(2.0), pytest.approx(3.0), pytest.approx(0.5), pytest.approx(0.0, abs=1e-9))
    with pytest.raises(ValueError, match="no step"):
        glue_costs([])


def test_lines_and_non_negative_fits() -> None:
    assert line([(1.0, 5.0), (3.0, 9.0), (5.0, 13.0)]) == (pytest.approx(3.0), pytest.approx(2.0))
    # One disturbed point of five does not move the line.
    assert line([(1, 5.0), (2, 7.0), (3, 900.0), (4, 11.0), (5, 13.0)]) == (pytest.approx(3.0), pytest.approx(2.0))
    # 2x − 1 has a negative fixed part: the best line through the origin.
    fixed, slope = line([(1.0, 1.0), (2.0, 3.0), (3.0, 5.0)])
    assert (fixed, slope) == (0.0, pytest.approx((1 + 6 + 15) / 14))
    with pytest.raises(ValueError, match="two sizes"):
        line([(1.0, 2.0), (1.0, 3.0)])
    with pytest.raises(ValueError, match="no growth"):
        line([(1.0, 3.0), (2.0, 2.0)])
    assert non_negative([[1.0, 0.0], [0.0, 1.0]], [2.0, -1.0], [1.0, 1.0]) == [pytest.approx(2.0), 0.0]


def test_costs_of_compiled_steps() -> None:
    guarded = [GuardedStep(100, 7.0, 1.0), GuardedStep(300, 13.0, 1.0)]
    assert guard_costs(guarded) == {"guards_us": pytest.approx(4.0), "guard_us": pytest.approx(0.03)}
    step = CompiledStep(30.0, 5.0, 20.0, 10, [(3, 6.5), (7, 7.5)], [4.0, 6.0, 5.0], [1.0, 1.2])
    assert inductor_costs([(step, guarded[0])]) == {
        "triton_us": pytest.approx(5.75),
        "triton_argument_us": pytest.approx(0.25),
        "extern_us": 5.0,
        "allocation_us": pytest.approx(1.1),
        "wrapper_us": 2.0,
        "aot_us": 5.0,
        "frame_us": 23.0,
    }
    assert "triton_us" not in inductor_costs([(CompiledStep(None, None, 1.0, 1), None)])
    assert inductor_costs([(CompiledStep(None, None, 1.0, 1, [(3, 6.0), (3, 8.0)]), None)])["triton_us"] == 7.0
    assert cudagraph_costs([(2, 40.0), (12, 60.0)], 6.0) == {
        "cudagraph_us": pytest.approx(30.0),
        "cudagraph_input_us": pytest.approx(2.0),
    }


def test_arguments_of_launches_are_read_from_the_wrapper() -> None:
    source = (
        "def call(args):\n"
        "    triton_poi_a.run(buf0, reinterpret_tensor(buf1, (1, 2), (3, 4), 0), 4096, stream=stream0)\n"
        "    self.kernels.triton_red_b.run(buf0, 4096, 1, 2, stream=stream0)\n"
        "    other.run(1)\n"
    )
    assert launcher_arguments(source) == {"triton_poi_a": 3, "self.kernels.triton_red_b": 4}


def _library_site(site: int, own: float, calls: int, inside: int, beside: int, launch: float) -> LibrarySite:
    return LibrarySite(
        site=site,
        around=False,
        own_us=own,
        blocked_us=0.5,
        calls=calls,
        launches_inside=inside,
        launches_beside=beside,
        launch_us=launch,
        graph_us=0.0,
    )


def _cuda_step(traced: Any) -> MeasuredStep:
    """A product (its launch in cuBLAS unheard) and a sum (its launch heard), clocked at half the libraries' speed."""
    step = MeasuredStep.__new__(MeasuredStep)
    step.name, step.device, step.traced = "made up", "cuda", traced
    keys = ("aten.mm.default(bfloat16[4x4](4,1), bfloat16[4x4](4,1))",)
    more = ("aten.add.Tensor(bfloat16[4x4](4,1), bfloat16[4x4](4,1))",)
    step.captured = SimpleNamespace(  # type: ignore[assignment]
        sites=[
            Site(target="torch.mm", dtype="bfloat16", leaf_keys=keys),
            Site(target="torch.add", dtype="bfloat16", leaf_keys=more),
        ]
    )
    step.clock = InSitu(drained=False, site_us=[40.0, 20.0], host_us=200.0, probe_us=0.2, steps=6)
    sites = [_library_site(0, 9.0, 1, 0, 0, 0.0), _library_site(1, 0.0, 0, 0, 1, 4.0)]
    step.library = LibraryTimes(sites=sites, host_us=100.0, cost_us=0.1)
    return step


def _traced(*launches: int) -> Any:
    activities = [SimpleNamespace(site=site, kind="kernel") for site in launches]
    return SimpleNamespace(activities=activities, launches=activities)


def test_terms_of_a_call_on_a_gpu() -> None:
    product, total = _cuda_step(_traced(0, 1)).rows(3.0)
    # 40 − 2 × (9 of library + 0.5 blocked); the launch inside the library is not heard: 2 × 9 − 3.
    assert (product.ft_us, product.ct_us, product.kernels) == (21.0, 15.0, 1)
    # 20 − 2 × (4 of launch + 0.5 blocked); its one launch was heard.
    assert (total.ft_us, total.ct_us, total.kernels) == (11.0, 0.0, 1)
    # A second, unheard launch of the sum is taken off its ΔFT.
    assert _cuda_step(_traced(0, 1, 1)).rows(3.0)[1].ft_us == 8.0


def test_a_draft_of_a_gpu_becomes_a_profile() -> None:
    def spread(us: float) -> Percentiles:
        return Percentiles(p5=us, p50=us, p95=us, samples=9)

    machine = sample_review().machine
    path = LaunchPath(**{name: spread(4.0) for name in LaunchPath.MEASUREMENTS})
    path = msgspec.structs.replace(path, idle_us=spread(3.5), t_sys_untraced_us=spread(5.5))
    known = {"null_us": 1.0, "gap_us": -0.25, "graph_gap_us": -0.05, "sync_us": 6.0}
    none = DevicePath.unavailable("no loop")
    why = {name: reason for name, reason in none.unmeasured.items() if name not in known}
    gaps = msgspec.structs.replace(none, unmeasured=why, **known)
    calibration = msgspec.structs.replace(
        machine.calibration, launch_us=3.0, t_sys_us=spread(7.0), launch_path=path, device_path=gaps, unmeasured={}
    )
    step = _cuda_step(_traced(0, 1))
    step.spans = Spans(around_us=None, runtime_us=None, glue_us=50.0, sites_us=60.0, host_us=110.0)
    step.modules, step.functions = 4, 10
    draft = Draft(
        device="cuda",
        scores=[100.0, 110.0, 90.0],
        machine=msgspec.structs.replace(machine, device="NVIDIA H200", calibration=calibration),
        steps=[step],
        guarded={"one": GuardedStep(100, 7.0, 1.0)},
        rates={"copy_gb_s": 4_000.0},
        reasons={"compiled.aot_us": "inductor: boom"},
    )
    profile = assemble(draft, None)
    launch = profile.launch
    assert (profile.name, profile.host_score) == ("nvidia-h200", HostScore(version=SCORE_VERSION, us=100.0))
    assert (launch.launch_us, launch.idle_us, launch.latency_us, launch.context_us) == (3.0, 3.5, 2.0, 8.0)
    assert (launch.gap_us, launch.graph_gap_us, launch.sync_us, profile.device.null_us) == (None, -0.05, 6.0, 1.0)
    assert profile.why_missing("launch.gap_us") == NEGATIVE
    assert profile.why_missing("launch.idle_sync_us") == "no loop"
    assert [(op.target, op.ft_us, op.ct_us) for op in profile.ops] == [
        ("torch.add", 11.0, 0.0),
        ("torch.mm", 21.0, 15.0),
    ]
    # Glue of one step: 50 µs over 2 sites, 4 modules and 10 functions, whichever carries it.
    assert costs.python_us(profile, 2, 4, 10) == pytest.approx(50.0)
    # 60 µs in sites, less twice 1 µs blocked at the speed of the other pass.
    assert profile.fit_steps[0].sites_us == 58.0
    assert "two sizes" in profile.why_missing("compiled.guard_us")
    assert profile.why_missing("compiled.aot_us") == "inductor: boom"
    hardware.decode(hardware.encode(profile), "p")


def test_without_a_trace_library_time_is_not_known() -> None:
    product, total = _cuda_step(None).rows(3.0)
    assert (product.ft_us, product.ct_us, product.kernels) == (21.0, None, None)
    assert total.ft_us == 11.0
    assert _cuda_step(None).launches() == (8.0, 1)


def _timer(us: float) -> Callable[[Sequence[Callable[[int], Any]]], list[list[tuple[float, int]] | str]]:
    """Runs every call once, and reports ``us`` with two kernels, or the error."""

    def times(runs: Sequence[Callable[[int], Any]]) -> list[list[tuple[float, int]] | str]:
        found: list[list[tuple[float, int]] | str] = []
        for run in runs:
            try:
                run(0)
            except (RuntimeError, NotImplementedError) as error:
                found.append(str(error))
            else:
                found.append([(us, 2), (3 * us, 2), (2 * us, 2)])
        return found

    return times


def test_cases_of_the_grid_do_the_work_that_they_state() -> None:
    cases = [
        *list(device_grid.product_cases("cpu", "float32", (24, 16), (1, 8), 0)),
        *list(device_grid.batched_cases("cpu", "float32"))[:1],
        *list(device_grid.attention_cases("cpu", "float32"))[:1],
        *list(device_grid.convolution_cases("cpu", "float32"))[:1],
    ]
    for case in cases:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = case.run(0)
        tensors = [value for value in case.operands[0] if isinstance(value, torch.Tensor)]
        # The CPU's own attention op has no formula in torch; that of all its attention ops is this one.
        attends = case.family == "attention"
        flops = sdpa_flop_count(*(t.shape for t in tensors)) if attends else counter.get_total_flops()
        assert flops == case.flops, case.family
        assert sum(tensor.nbytes for tensor in (*tensors, result)) == case.bytes, case.family
    assert [case.shape for case in cases[:3]] == [(1, 24, 16), (8, 24, 16), None]


def test_streaming_cases_state_their_bytes() -> None:
    cases = list(device_grid.streaming_cases("cpu", "float32", [4_096]))
    families = {case.family for case in cases}
    assert families == {"elementwise", "copy", "reduction", "softmax", "normalization", "index", "random", "sort/scan"}
    for case in cases:
        result = case.run(0)
        if case.family in ("elementwise", "softmax", "reduction"):
            read = [value for value in case.operands[0] if isinstance(value, torch.Tensor)]
            assert sum(tensor.nbytes for tensor in (*read, result)) == case.bytes, case.function


def test_weights_take_turns_until_the_cache_has_lost_them() -> None:
    (case,) = device_grid.product_cases("cpu", "float32", (16, 16), (1,), 3_000)
    assert len(case.operands) == 6  # 2 × 3,000 ÷ 1,024 bytes, rounded up
    assert len({operands[1].data_ptr() for operands in case.operands}) == 6
    assert case.operands[0][0] is case.operands[5][0]
    assert len(next(iter(device_grid.product_cases("cpu", "float32", (16, 16), (1,), 0))).operands) == 1


def test_a_grid_is_made_of_medians_and_tells_what_is_missing() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel for this")

    lost = device_grid.Case("random", "float32", "", 8.0, 0.0, None, broken, [()])
    groups = [device_grid.product_cases("cpu", "float32", (8, 8), (1, 2), 0), [lost]]
    found, reasons, notes = device_grid.grids(groups, _timer(5.0))
    (grid,) = found
    assert (grid.family, grid.dtype, [p.us for p in grid.points]) == ("gemm", "float32", [10.0, 10.0])
    assert [p.shape for p in grid.points] == [(1, 8, 8), (2, 8, 8)] and grid.points[0].kernels == 2
    assert reasons == {"device.random": "no kernel for this"}
    assert len(notes) == 1 and "random point in float32" in notes[0]
    assert [rate.tflops for rate in device_grid.matrix_rates(found)] == [pytest.approx(256 / 10.0 / 1e6)]


def test_bandwidths_count_what_moves() -> None:
    found = device_grid.bandwidths("cpu", 1_000, _timer(1.0))
    assert found == {"copy_gb_s": 4.0, "read_gb_s": 2.0, "write_gb_s": 2.0}  # 8,000 bytes in 2 µs


def test_attention_choices_name_the_op_and_the_case() -> None:
    found = device_grid.attention_choices("cpu", _timer(1.0))
    keys = {(c.dtype, c.head_dim, c.mask, c.phase, c.grouped) for c in found}
    assert len(keys) == len(found)
    assert {c.mask for c in found if c.phase == "decode"} == {"none", "bool", "float"}
    assert {c.mask for c in found if c.phase == "prefill"} == {"none", "causal", "bool", "float"}
    assert all(c.op == "math" or "scaled_dot_product" in c.op for c in found)
    assert any("flash" in c.op for c in found) and found[0].kernels == 2


@pytest.mark.gpu
def test_a_gpu_is_measured_whole() -> None:
    plan = Plan(fits=(Fit("gpt2", 2, "prefill"),), guarded=TINY.guarded, inductor=(), pass_s=0.2)
    events: list[Event] = []
    profile = measure_profile("cuda", "gpu", 300.0, events.append, plan)
    assert [f"{e.stage}: {e.message}" for e in events if e.kind == "failed"] == []
    for name in ("launch.latency_us", "launch.gap_us", "compiled.triton_us", "compiled.cudagraph_us"):
        assert profile.number(name) > 0
    assert profile.number("device.copy_gb_s") > 100
    assert {row.library for row in profile.libraries} & {"cuBLAS", "cuBLASLt"}
    linear = [op for op in profile.ops if op.family == "gemm"]
    # A product may be split, by its shape, into two kernels: then its calls agree on no number.
    assert linear and all(op.ct_us and (op.kernels is None or op.kernels >= 1) for op in linear)
    assert any(op.kernels for op in linear)
    assert {"gemm", "attention", "elementwise", "grouped-gemm"} <= {grid.family for grid in profile.device.grids}
    assert any("scaled_dot_product" in choice.op for choice in profile.device.attention)


@pytest.mark.gpu
def test_timing_on_a_gpu_needs_the_profiler_to_see_kernels() -> None:
    found = device_grid.traced_times([lambda _: torch.ones(4, device="cuda") + 1, lambda _: None])
    assert isinstance(found[0], list) and all(us > 0 and kernels >= 1 for us, kernels in found[0])
    assert isinstance(found[1], str)
