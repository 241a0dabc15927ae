"""The measuring side on tiny CPU steps: pairs, in-situ times, frame, outputs, and reasons instead of numbers."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
import torch._inductor.compile_fx
from torch import nn

from taxbreak_fx import replay, tick_cost
from taxbreak_fx.capture import CapturedCall, room_for
from taxbreak_fx.errors import CaptureError, MeasurementError
from taxbreak_fx.model import StepInfo
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.probes import ClockProbe, DrainProbe
from taxbreak_fx.recorders import in_situ as recorders_in_situ
from taxbreak_fx.recorders.bench import MAX_PAIRS, MIN_PAIRS, Bench, one_line, quiet_gc
from taxbreak_fx.recorders.frame import measure_frame
from taxbreak_fx.recorders.in_situ import MAX_PASSES, MIN_PASSES, in_situ, observation_cost_us
from taxbreak_fx.recorders.outputs import NOT_FINITE, OutputReference
from taxbreak_fx.recorders.timing import REFERENCE_ROUNDS, null_launches_us, reach_sites, time_variant
from taxbreak_fx.recorders.tracing import agreed, triton_kernels
from taxbreak_fx.recording import Activity, HostFacts, Timing, TracedStep
from taxbreak_fx.stages import Stage
from taxbreak_fx.tick_cost import TickCost, routing_cost_us
from taxbreak_fx.turn import Turn
from taxbreak_fx.variants import Built
from taxbreak_fx.workload import Workload


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every timed region begins with a garbage collection: keep it from walking all of torch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def step_info(dtype: str = "float32") -> StepInfo:
    """A forward step on the CPU."""
    return StepInfo(phase="forward", batch=None, seq_len=None, dtype=dtype, device="cpu")


def bench_of(call: Any, *args: Any, dtype: str = "float32", **kwargs: Any) -> Bench:
    """A bench that spends 20 ms on pairs."""
    return Bench(
        Workload(call=call, model="toy", step=step_info(dtype), args=args, kwargs=kwargs), "cpu", budget_s=0.02
    )


class Toy(nn.Module):
    """A layer, a buffer that counts, and a reduction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return torch.relu(self.layer(x)).sum(-1) + self.count


def timed(name: str, bench: Bench) -> Timing:
    """``name`` beside eager on ``bench``."""
    return time_variant(bench, name, OutputReference(bench))


# --- time_variant ---------------------------------------------------------------------------------------------------


def test_steps_that_the_scheduler_interrupts_are_counted() -> None:
    def spin() -> None:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass

    bench, cores = bench_of(spin), os.sched_getaffinity(0)
    one = min(cores)
    busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{one}}})\nwhile True: pass"])
    try:
        os.sched_setaffinity(0, {one})  # of this thread
        time.sleep(0.2)  # the other is on its way
        bench.timed(bench.eager)
    finally:
        os.sched_setaffinity(0, cores)
        busy.kill()
        busy.wait()
    assert bench.preempted > 0


def test_a_launch_is_priced_beside_the_variant_or_the_calibration_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    assert null_launches_us("cpu", notes) == [] and notes == []
    monkeypatch.setattr("taxbreak_fx.recorders.timing._null_kernel", lambda: (FakeLoop(), None))
    assert null_launches_us("cuda", notes) == [2.5, 3.0] and notes == []

    def refuse() -> Any:
        raise MeasurementError("no C compiler was found: install gcc")

    monkeypatch.setattr("taxbreak_fx.recorders.timing._null_kernel", refuse)
    assert null_launches_us("cuda", notes) == []
    assert notes == ["launches cost as calibrated: no C compiler was found: install gcc"]


class FakeLoop:
    """A loop whose launches take 2.5 and 3 µs."""

    def host_us(self, kernel: Any, per_drain: int, count: int) -> list[float]:
        assert per_drain == count
        return [2.5, 3.0]


@pytest.mark.parametrize("name", ["eager", "dynamo", "inductor"])
def test_a_variant_is_timed_in_pairs_with_everything_beside(name: str) -> None:
    module, x = Toy(), torch.rand(2, 8)
    found = timed(name, bench_of(module, x))
    lengths = {len(series) for series in (found.wall_us, found.host_us, found.base_wall_us, found.base_host_us)}
    assert len(lengths) == 1 and MIN_PAIRS <= lengths.pop() <= MAX_PAIRS
    assert min(found.host_us) > 0 and all(a >= b for a, b in zip(found.wall_us, found.host_us, strict=True))
    assert (found.compile_s is None) == (name == "eager")
    assert len(found.reference_us) == 2 * REFERENCE_ROUNDS and min(found.reference_us) > 0
    assert (found.peak_memory_bytes, found.graph_launch_us, found.drained) == (None, None, None)
    # the sites: as many in the clocked pass as recorded, and their sum is a span of the step
    assert found.in_situ_failure is None and found.in_situ is not None and found.spans is not None
    assert len(found.in_situ.site_us) == len(found.sites)
    assert MIN_PASSES // 2 <= found.in_situ.steps <= MAX_PASSES // 2  # the steadier half of them
    assert found.spans.sites_us == pytest.approx(sum(found.in_situ.site_us))
    assert found.spans.host_us == found.in_situ.host_us > 0
    # Dynamo's graphs have something around them, Inductor's code has its runtime, the uncompiled step has neither
    assert (found.spans.around_us is None, found.spans.runtime_us is None) == (name == "eager", name != "inductor")
    assert found.notes == []
    targets = {site.target for site in found.sites}
    expected = {
        "eager": {"torch.nn.functional.linear", "torch.relu"},
        "dynamo": {"torch.nn.functional.linear", "torch.relu"},
        "inductor": {"extern:addmm"},
    }[name]
    assert expected <= targets
    assert name != "inductor" or any(target.startswith("cpp:cpp_fused") for target in targets)
    # every recorded leaf has its replays
    leaves = {key for site in found.sites for key in site.leaf_keys}
    for level in ("leaf", "smallest"):
        assert {r.key for r in found.replays if r.level == level} == leaves
    assert all((r.host_us is None) == (r.failure is not None) for r in found.replays)
    # the outputs are compared, and right
    assert found.output_failure is None and found.output_check is not None
    assert found.output_check.reference_dtype == "float64"
    assert found.output_check.variant_error < found.output_floor
    assert len(found.graphs) == (0 if name == "eager" else 1)
    # every one of those steps started from the same state
    assert float(module.count) in (0.0, 1.0)


def test_a_step_whose_calls_depend_on_chance_has_times_but_no_sites() -> None:
    class Chance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return self.layer(x) if len(calls) % 2 else self.layer(x) + 1

    calls = collectable()
    found = timed("eager", bench_of(Chance(), torch.ones(1, 4)))
    assert len(found.wall_us) >= MIN_PAIRS
    assert found.in_situ is None
    assert found.in_situ_failure is not None
    # No class name, and the cause in a user's words: the passes differ, by clock reads or by recorded calls.
    assert found.in_situ_failure.startswith(("the step met ", "two passes of the step met different calls"))
    assert "its work depends on data" in found.in_situ_failure
    assert found.spans is None


def test_sites_are_reached_by_ticks_where_that_can_be_done() -> None:
    for name in ("eager", "inductor", "dynamo"):
        bench = bench_of(Toy(), torch.rand(2, 8))
        built, _ = bench.build(name)
        reach_sites(bench, built)
        assert (built.mechanism, built.notes) == ("ticks", [])
        built.release()


def test_ticks_that_would_miss_a_call_give_way_to_the_slower_mechanism_with_a_note() -> None:
    class Remade(nn.Module):
        """Keeps the function of the last step, whose code a new function runs in this one."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def inner(y: torch.Tensor) -> torch.Tensor:
                return torch.relu(y) + 1

            kept.inner = inner
            return inner(x)

    kept = types.SimpleNamespace(inner=None)
    found = timed("eager", bench_of(Remade(), torch.ones(2)))
    assert found.in_situ_failure is None and found.in_situ is not None
    assert [site.target for site in found.sites if site.ops] == ["torch.relu", "Tensor.add"]
    (note,) = found.notes
    assert note.startswith("in-situ times come by function mode, whose cost is known only roughly: ")


def test_a_step_that_catches_what_a_torch_call_raises_is_clocked_by_the_slower_mechanism() -> None:
    class Tries(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return x.view(-1)
            except RuntimeError:
                return x.reshape(-1) + 1

    found = timed("eager", bench_of(Tries(), torch.ones(3, 2).t()))
    assert found.in_situ_failure is None and found.in_situ is not None
    assert found.notes == [
        "in-situ times come by function mode, whose cost is known only roughly: an exception passes through a "
        "torch call of the step: its clock reads do not pair"
    ]


class collectable:
    """A counter that no snapshot can find: its state is in no dict."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def append(self, value: int) -> None:
        """Count one."""
        self._count += 1

    def __len__(self) -> int:
        return self._count


def test_a_step_that_dynamo_leaves_alone_is_told_so() -> None:
    class Uncompilable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                raise NotImplementedError("not under a compiler")
            return x + 1

    found = timed("dynamo", bench_of(Uncompilable(), torch.ones(1)))
    assert found.graphs == []
    assert found.notes == ["nothing was compiled: Dynamo captured no graph, so the step ran as it is"]


def test_a_clocked_pass_that_meets_other_sites_is_a_reason() -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return x + 1 + 1 if len(calls) > late else x + 1

    calls, late = collectable(), 10_000
    bench = bench_of(Late(), torch.ones(1))
    spans, clock, drained = in_situ(bench, bench.eager, 1)
    assert len(clock.site_us) == 1 and drained is None
    assert (spans.around_us, spans.runtime_us) == (None, None)
    late = 0
    with pytest.raises(MeasurementError, match="met 2 calls in one pass and 1 in another: its work depends on data"):
        in_situ(bench, bench.eager, 1)


class Scripted(Built):
    """A step of known microseconds: 5 and 6 around its graph, 2 and 3 of runtime, 1 of glue beside each of two sites.

    ``now`` moves only with the work and with clock reads, of which each takes ``before`` and ``after`` its value.
    """

    def __init__(self, nested: bool, before: int, after: int) -> None:
        super().__init__(self.work)
        self.now, self.before, self.after, self.slowness, self.steps = 0, before, after, 1, 0
        self.nested, self.probe = nested, None

    def read(self) -> int:
        """What stands in for the clock, in nanoseconds."""
        value = self.now = self.now + self.before
        self.now += self.after
        return value

    def spend(self, us: float) -> None:
        """So much work at the host's speed."""
        self.now += round(us * 1000) * self.slowness

    def stamp(self, stamps: str) -> None:
        """A read at an edge, where the step is clocked."""
        if isinstance(self.probe, ClockProbe) and (self.nested or stamps == "stamps"):
            getattr(self.probe, stamps).append(self.read())

    def work(self) -> None:
        """One step; a host that drifts halves its speed for 13 of its 26, and the switches fall into clocked steps."""
        self.slowness = 2 if self.before == 0 and 8 <= self.steps < 21 else 1
        self.steps += 1
        self.spend(5)
        self.stamp("graphs")
        self.spend(2)
        self.stamp("codes")
        for us in (30, 20):
            self.spend(1)
            self.stamp("stamps")
            self.spend(us)
            self.stamp("stamps")
        self.spend(1)
        self.stamp("codes")
        self.spend(3)
        self.stamp("graphs")
        self.spend(6)

    @contextlib.contextmanager
    def observe(self, probe: Any, labels: Any = None, mode: Any = None) -> Iterator[None]:
        """Clock the step."""
        self.probe = probe
        yield
        self.probe = None


@pytest.mark.parametrize(
    ("nested", "before", "after"),
    [(True, 50, 100), (False, 50, 100), (True, 0, 0)],  # the last: a clock that costs nothing, on a host that drifts
)
def test_spans_are_the_step_without_the_clocks_own_cost(
    monkeypatch: pytest.MonkeyPatch, nested: bool, before: int, after: int
) -> None:
    bench = bench_of(nn.Identity(), torch.ones(1))
    bench.budget_s = 0.0
    step = Scripted(nested, before, after)
    # A pair of reads: the rest of the first and the start of the second lie between their values, the others outside.
    cost = (before + after) / 1e3
    monkeypatch.setattr("time.perf_counter_ns", step.read)
    monkeypatch.setattr(recorders_in_situ, "observation_cost_us", lambda mechanism: (cost, cost))
    monkeypatch.setattr(recorders_in_situ, "clock_cost_us", lambda: (cost, cost))
    spans, clock, _ = in_situ(bench, step, 2)
    speed = 1.5 if before == 0 else 1.0  # the median of as many steps at 1 as at 2
    assert clock.site_us == pytest.approx([30 * speed, 20 * speed])
    assert spans.sites_us == pytest.approx(50 * speed)
    # T_host is itself read by the clock, once at each end: that one pair is in the outermost span as it is in T_host
    if nested:
        found = (spans.around_us, spans.runtime_us, spans.glue_us)
        assert found == pytest.approx((11 * speed + cost, 5 * speed, 3 * speed))
    else:
        assert (spans.around_us, spans.runtime_us) == (None, None)
        assert spans.glue_us == pytest.approx(19 + cost)
    total = (spans.around_us or 0) + (spans.runtime_us or 0) + spans.glue_us + spans.sites_us
    assert total == pytest.approx(spans.host_us)
    assert spans.host_us == pytest.approx(69 * speed + cost)
    assert len(spans.passes_us) == MIN_PASSES  # all, also those that are not used; a plain step lies between each two
    assert [after for _, _, after in spans.passes_us[:-1]] == [before for _, before, _ in spans.passes_us[1:]]


class Routed(Scripted):
    """Scripted, clocked by ticks: two more pairs of reads lie inside the first site, and a drained pass reaches its
    probe by calls, which take 400 ns inside each site, and 3 µs more in the first pass after other code ran."""

    def __init__(self) -> None:
        super().__init__(nested=False, before=50, after=100)
        self.ticks: Any = types.SimpleNamespace(nested=[2, 0])
        self.mechanism = "ticks"
        self.last: Any = None

    def spend(self, us: float) -> None:
        super().spend(us)
        if us == 30 and isinstance(self.probe, ClockProbe):
            for _ in range(4):
                self.read()

    def stamp(self, stamps: str) -> None:
        super().stamp(stamps)
        if isinstance(self.probe, DrainProbe) and stamps == "stamps":
            entering = len(self.probe.stamps) % 2 == 0
            self.now += 0 if entering else 150
            self.probe.stamps.append(self.read())
            self.now += (250 if self.last is DrainProbe else 3_250) if entering else 0

    @contextlib.contextmanager
    def observe(self, probe: Any, labels: Any = None, mode: Any = None) -> Iterator[None]:
        with super().observe(probe, labels, mode):
            yield
        self.last = type(probe)


def test_reads_inside_a_site_and_the_calls_of_a_drained_pass_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(nn.Identity(), torch.ones(1))
    bench.budget_s, bench.device = 0.0, "cuda"
    step = Routed()
    monkeypatch.setattr("time.perf_counter_ns", step.read)
    beside: list[str] = []

    class Cost:
        """What the reads cost, and when that was sampled."""

        def __init__(self, device: str) -> None:
            assert device == "cuda"

        def plain(self) -> None:
            beside.append("plain")

        def clocked(self) -> None:
            beside.append("clocked")

        def cost_us(self) -> tuple[float, float]:
            return 0.15, 0.15

    monkeypatch.setattr(recorders_in_situ, "TickCost", Cost)
    monkeypatch.setattr(recorders_in_situ, "clock_cost_us", lambda: (0.15, 0.15))
    monkeypatch.setattr(recorders_in_situ, "routing_cost_us", lambda device: 0.4)
    spans, clock, drained = in_situ(bench, step, 2)
    assert drained is not None
    assert clock.site_us == pytest.approx([30, 20])
    assert spans.sites_us == pytest.approx(50)
    assert spans.glue_us + spans.sites_us == pytest.approx(spans.host_us)
    assert beside == ["plain", "clocked"] * MIN_PASSES  # once before each clocked step, once before each plain one
    # Ticks inside the site of a drained pass are calls that return at once: what they cost is not in this script.
    assert [us + 2 * 0.3 * (number == 0) for number, us in enumerate(drained.site_us)] == pytest.approx([30, 20])


def test_a_step_that_cannot_be_recorded_keeps_its_times() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch._C._len_torch_function_stack():
                raise RuntimeError("not under a mode")
            return x + 1

    found = timed("eager", bench_of(Stubborn(), torch.ones(1)))
    assert len(found.wall_us) >= MIN_PAIRS
    assert (found.in_situ, found.in_situ_failure) == (None, "RuntimeError: not under a mode")


def test_a_decode_step_on_a_static_cache_is_timed_at_its_position() -> None:
    module = tiny_models.build("gpt2")
    steps = dict(tiny_models.steps(module))
    with torch.no_grad():
        steps["prefill"]()
    bench = bench_of(steps["decode"])
    found = timed("eager", bench)  # far more steps than the cache has positions
    assert found.in_situ_failure is None
    assert any("index_copy" in op for site in found.sites for op in site.ops)


# --- the bench ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("too\nbad"), KeyError("x"), ZeroDivisionError(), AssertionError()])
def test_a_step_that_fails_as_it_is_is_a_capture_error(error: Exception) -> None:
    def step() -> None:
        raise error

    with pytest.raises(CaptureError, match="the step fails when run as it is") as caught:
        bench_of(step)
    assert "\n" not in str(caught.value)


def test_a_step_compiles_nothing_more_whoever_asks_for_it() -> None:
    bench = bench_of(Toy(), torch.ones(2, 8))
    built, _ = bench.build("dynamo")
    with torch.enable_grad():
        output = bench.step(built)
    assert len(built.graphs) == 1 and not output.requires_grad
    built.release()


def test_pairs_alternate_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(nn.Identity(), torch.ones(1))
    other, order = copy.copy(bench.eager), []

    def fake(built: Any) -> tuple[float, float]:
        order.append("base" if built is bench.eager else "own")
        return (2.0, 1.0) if built is bench.eager else (4.0, 3.0)

    monkeypatch.setattr(bench, "timed", fake)
    rows = bench.pairs(other)
    assert set(rows) == {(4.0, 3.0, 2.0, 1.0)}
    assert order[6:10] == ["base", "own", "own", "base"]  # after the warm-up


def test_the_timed_region_is_free_of_garbage_collection() -> None:
    with pytest.raises(ZeroDivisionError), quiet_gc():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_errors_in_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError()) == "ValueError: no message"
    assert len(one_line(ValueError("x" * 999))) == 300


# --- what observation costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["generated", "function mode", "stand-in"])
def test_the_cost_of_observing_a_site_is_microseconds(mechanism: str) -> None:
    inside, outside = observation_cost_us(mechanism)
    assert 0.0 < inside + outside < 100.0


class Moments:
    """A program of 100 sites on a scripted clock: 1 ms, clocked a tenth more, all of it as slow as the host is."""

    sites = 100

    def __init__(self) -> None:
        self.now, self.slowness, self.reading = 0, 1, False
        self.ticks = self

    def step(self) -> None:
        """Run it."""
        self.now += (1_100_000 if self.reading else 1_000_000) * self.slowness

    def sync(self) -> None:
        """Nothing runs elsewhere."""

    @contextlib.contextmanager
    def installed(self, probe: Any) -> Iterator[None]:
        """With its sites clocked."""
        self.reading = True
        yield
        self.reading = False


def test_the_cost_of_ticks_is_that_of_the_moments_at_which_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Moments()
    monkeypatch.setattr(tick_cost, "_program", lambda device: program)
    monkeypatch.setattr(tick_cost, "inline_cost_us", lambda: (0.1, 0.3))
    monkeypatch.setattr("time.perf_counter_ns", lambda: program.now)

    def sampled(*slowness: int) -> tuple[float, float]:
        cost = TickCost("cpu")
        for program.slowness in slowness:
            cost.plain()
            cost.clocked()
        return cost.cost_us()

    assert sampled(1, 1, 1) == pytest.approx((0.25, 0.75))  # 100 µs over 100 sites, split as in the tight loop
    assert sampled(1, 2, 2) == pytest.approx((0.5, 1.5))  # the middle speed
    program.sites = 10_000
    assert sampled(1, 1, 1) == pytest.approx((0.1, 0.3))  # no less than the tight loop


def test_a_routed_site_costs_more_than_one_clocked_in_the_code() -> None:
    # Six Python calls a site, against none: that is no noise.
    assert 0.0 < routing_cost_us("cpu") < 50.0


# --- frame ----------------------------------------------------------------------------------------------------------


def test_the_frame_of_a_compiled_graph() -> None:
    module, x = Toy(), torch.ones(2, 8)
    frame = measure_frame(bench_of(module, x))
    assert frame.guards_us is not None and frame.guards_failure is None
    assert frame.eager_us > 0
    assert frame.aot_us is not None and frame.aot_failure is None
    assert float(module.count) == 0.0


# --- outputs --------------------------------------------------------------------------------------------------------


def checked(module: nn.Module, x: torch.Tensor, variant: Any, dtype: str = "float32") -> Any:
    """The output check of a variant that returns ``variant``."""
    return OutputReference(bench_of(module, x, dtype=dtype)).check("dynamo", lambda: variant)


def test_errors_are_relative_to_a_run_in_higher_precision() -> None:
    module, x = Toy(), torch.rand(2, 8)
    with torch.no_grad():
        truth = module(x)
        module.count.zero_()
    check, failure = checked(module, x, truth * 1.5)
    assert failure is None and check is not None
    assert (check.reference_dtype, check.top1_total) == ("float64", 1)
    assert check.eager_error < 1e-6 and check.variant_error == pytest.approx(0.5, rel=1e-5)
    half, reason = checked(Toy().bfloat16(), x.bfloat16(), torch.zeros(2, dtype=torch.bfloat16), "bfloat16")
    assert reason is None and half.reference_dtype == "float32" and half.variant_error == pytest.approx(1.0)


def test_flips_of_the_largest_entry_are_counted() -> None:
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]])
    check, _ = checked(nn.Identity(), x, x.flip(-1))
    assert (check.top1_flips, check.top1_total) == (3, 3)

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    both, _ = checked(Two(), x, (x.flip(-1), x + 1))
    assert (both.top1_flips, both.top1_total) == (3, 6)


def test_outputs_that_cannot_be_compared_have_a_reason() -> None:
    x = torch.ones(2, 2)
    assert checked(nn.Identity(), x, torch.ones(3))[1] == "dynamo returned tensors of other shapes than eager"
    integers = nn.Identity()
    assert checked(integers, torch.ones(1, dtype=torch.int64), None, "none")[1] == (
        "the step returns no floating-point tensor to compare"
    )
    narrow = torch.ones(2, 2)
    stubborn = bench_of(lambda: torch.mm(x, narrow.to(torch.float32)))
    assert str(OutputReference(stubborn).check("dynamo", lambda: x)[1]).startswith("no float64 reference: ")


def test_a_plain_function_is_widened_in_place_and_put_back() -> None:
    weight = torch.full((2, 2), 1.0)
    address = weight.data_ptr()
    found, why = OutputReference(bench_of(lambda: weight / 7)).check("dynamo", lambda: weight * 2 / 7)
    assert why is None and found is not None
    # 1/7 rounds differently in float32, so the reference was wider; twice the value is off by as much as the value.
    assert found.reference_dtype == "float64" and 0.0 < found.eager_error < 1e-7
    assert found.variant_error == pytest.approx(1.0)
    assert (weight.dtype, weight.data_ptr()) == (torch.float32, address)


def test_infinity_and_nan_survive_as_reasons_not_as_numbers() -> None:
    bad = torch.tensor([[1.0, float("nan")]])
    assert checked(nn.Identity(), bad, bad) == (None, "eager's own outputs hold NaN or infinity")
    check, _ = checked(nn.Identity(), torch.ones(1, 2), bad)
    assert check.variant_error == NOT_FINITE


# --- replay ---------------------------------------------------------------------------------------------------------


def leaf(function: Any, *args: Any, **kwargs: Any) -> CapturedCall:
    """A captured leaf call."""
    return CapturedCall(str(function), str(function), "float32", function, args, kwargs)


ATEN = torch.ops.aten
X = torch.rand(4, 6)


def test_a_replay_that_fails_is_an_entry_with_its_reason() -> None:
    (good, bad) = replay.replay_all([leaf(ATEN.relu.default, X), leaf(ATEN.mm.default, X, X)], "leaf", lambda: None)
    assert good.host_us is not None and good.host_us > 0 and good.failure is None
    assert bad.host_us is None and bad.failure is not None and bad.failure.startswith("RuntimeError: ")


def test_calls_whose_arguments_would_fill_the_device_are_timed_and_not_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taxbreak_fx.capture.room_for", lambda storage: False)
    found = timed("eager", bench_of(Toy(), torch.ones(2, 8)))
    assert found.in_situ is not None and found.in_situ_failure is None and found.sites
    made = [replay for replay in found.replays if replay.op in ("aten.relu.default", "aten.sum.dim_IntList")]
    assert made and all(replay.host_us is None and "were not kept" in str(replay.failure) for replay in made)
    # Inputs and weights outlive the step, and are not copied.
    assert all(replay.failure is None for replay in found.replays if replay.op == "aten.addmm.default")


@pytest.mark.parametrize(("free", "room"), [(40, True), (29, False)])
def test_a_copy_has_room_where_a_fifth_of_the_device_stays_free(
    free: int, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 bytes, of which the allocator has 10 to give again, and a copy of 20."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 100))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 30)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 20)
    assert room_for(types.SimpleNamespace(device=torch.device("cuda"), nbytes=lambda: 20)) is room  # type: ignore[arg-type]
    assert room_for(torch.ones(4).untyped_storage())


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (leaf(ATEN.addmm.default, torch.rand(8), X, torch.rand(6, 8)), [(1, 1)]),
        (leaf(ATEN.view.default, X, [2, 12]), [(1, 1)]),
        (leaf(ATEN.expand.default, X, [3, 4, 6]), [(1, 1, 1)]),
        (leaf(ATEN.native_layer_norm.default, X, [6], torch.rand(6), torch.rand(6), 1e-5), [(1, 1), (1, 1), (1, 1)]),
        (leaf(ATEN.cat.default, [X, X], 0), [(2, 1)]),
        (leaf(ATEN.embedding.default, torch.rand(9, 4), torch.tensor([[8, 3]])), [(1, 1, 1)]),
        (leaf(ATEN.index_select.default, X, 0, torch.tensor([3, 1])), [(1, 1)]),
        (leaf(ATEN._softmax.default, X, -1, False), [(1, 1)]),
    ],
    ids=lambda value: value.op if isinstance(value, CapturedCall) else "",
)
def test_ops_shrink_to_their_smallest_shape(call: CapturedCall, shapes: list[tuple[int, ...]]) -> None:
    result = replay.smallest(call)()
    found = [tuple(t.shape) for t in (result if isinstance(result, (tuple, list)) else [result])]
    assert found == shapes
    (entry,) = replay.replay_smallest([call])
    assert (entry.level, entry.failure) == ("smallest", None)


def traced(*durations: float) -> TracedStep:
    """A traced step of kernels of these microseconds."""
    activities = [
        Activity(kind="kernel", name="k", start_us=0.0, duration_us=us, stream=7, launch=None, site=None, signature="")
        for us in durations
    ]
    return TracedStep(activities=activities, launches=[], syncs=[], sites=0)


def test_of_traced_steps_the_one_of_middle_device_time_is_kept() -> None:
    fast, middle, stretched = traced(1.0, 2.0), traced(1.5, 2.0), traced(9.0, 9.0)
    for order in ((fast, middle, stretched), (stretched, fast, middle), (middle, stretched, fast)):
        assert agreed(list(order)) == (middle, [])
    other = traced(1.6)
    chosen, notes = agreed([other, middle, fast])
    assert chosen == fast and len(notes) == 1 and "1, 2, 2" in notes[0]  # of two, the one that others stretched less


class Watched(Turn):
    """A turn that nobody else has; it tells when it is given up, and that it is waited for 0.2 s then."""

    def __init__(self) -> None:
        super().__init__(None)
        self.compiling: list[bool] = []

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        self.compiling.append(True)
        yield
        self.compiling.append(False)
        time.sleep(0.2)
        self.waited_s += 0.2


def test_the_turn_is_given_up_while_a_graph_is_compiled_and_at_no_step() -> None:
    turn = Watched()
    bench = Bench(Workload(call=Toy(), model="toy", step=step_info(), args=(torch.ones(2, 8),)), "cpu", 0.02, turn)
    bench.step(bench.eager)
    assert turn.compiling == []
    started = time.perf_counter()
    built, seconds = bench.build("inductor")
    assert turn.compiling == [True, False]  # one graph
    assert 0 < seconds <= time.perf_counter() - started - 0.2  # waiting is not compiling
    bench.pairs(built)
    assert turn.compiling == [True, False]


# --- stages in one process ------------------------------------------------------------------------------------------


def test_a_runner_turns_results_and_failures_into_outcomes() -> None:
    workload = Workload(call=Toy(), model="toy", step=step_info(), args=(torch.ones(2, 8),), seed=3)
    runner = Runner(workload, "cpu", 0.02)
    host = runner.run(Stage(kind="host"))
    facts = host.value()
    assert isinstance(facts, HostFacts) and host.failure is None
    assert (facts.model, facts.machine.device, facts.machine.conditions.seed) == ("toy", "cpu", 3)
    assert facts.machine.calibration.host_score is not None and facts.machine.calibration.host_score > 0
    assert facts.machine.calibration.unmeasured["launch_us"] == "the CPU device launches no kernel"
    timing = runner.run(Stage(kind="timing", variant="dynamo"))
    assert isinstance(timing.value(), Timing) and timing.seconds > 0
    failed = runner.run(Stage(kind="timing", variant="eager-graph"))
    assert failed.failure is not None and not failed.fatal and "\n" not in failed.failure
    assert runner.run(Stage(kind="timing", variant="eager")).failure is None  # one failure spoils nothing


def test_an_error_that_poisons_the_context_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(call=Toy(), model="toy", step=step_info(), args=(torch.ones(2, 8),))
    runner = Runner(workload, "cpu", 0.02)

    def assertion(*args: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")

    monkeypatch.setattr("taxbreak_fx.pipeline.time_variant", assertion)
    outcome = runner.run(Stage(kind="timing", variant="eager"))
    assert outcome.fatal and outcome.failure is not None and "device-side assert" in outcome.failure


def test_triton_kernels_of_loaded_modules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's classes are stood in for: the kernel, and the autotuner that wraps one."""
    jit = types.ModuleType("triton.runtime.jit")

    class JITFunction:
        def __init__(self, name: str) -> None:
            self.__name__ = name

    class Autotuner:
        def __init__(self, fn: JITFunction) -> None:
            self.fn = fn

    Autotuner.__module__ = "triton.runtime.autotuner"
    jit.JITFunction = JITFunction  # type: ignore[attr-defined]
    author = types.ModuleType("author")
    author.plain, author.tuned = JITFunction("plain_kernel"), Autotuner(JITFunction("tuned_kernel"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton.runtime.jit", jit)
    monkeypatch.setitem(sys.modules, "author", author)
    assert {"plain_kernel", "tuned_kernel"} <= set(triton_kernels())
    monkeypatch.delitem(sys.modules, "triton.runtime.jit")
    assert triton_kernels() == []


def test_whatever_the_bytecode_tools_raise_costs_the_better_clock_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise KeyError("opcode")

    monkeypatch.setattr("taxbreak_fx.recorders.timing.find_ticks", broken)
    bench = bench_of(lambda: torch.ones(2) + 1)
    built, _ = bench.build("eager")
    reach_sites(bench, built)
    assert (built.ticks, built.mechanism) == (None, "function mode")
    assert built.notes == ["in-situ times come by function mode, whose cost is known only roughly: KeyError: 'opcode'"]
