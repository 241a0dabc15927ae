"""Probes reach the sites of a running step by every mechanism, change nothing, and are taken off again."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.observe import (
    EagerSites,
    GraphSwitch,
    Label,
    clocked,
    graph_replays,
    instrument_graph,
    ticked_code,
    wrapper_sites,
)
from taxbreak_fx.probes import (
    RANGE,
    ClockProbe,
    CountProbe,
    DrainProbe,
    RangeProbe,
    between,
    clock_cost_us,
    inline_cost_us,
)
from taxbreak_fx.ticks import Ticks

Observed = Callable[[Any], AbstractContextManager[Any]]


def counts(run: Callable[[], Any], observed: Observed) -> list[int]:
    """How many sites the clock, drain, range and count passes of ``run`` meet."""
    clock, drain, ranges, count = ClockProbe(), DrainProbe(lambda: None), RangeProbe(), CountProbe()
    with torch.no_grad():
        for probe in (clock, drain, ranges, count):
            with observed(probe):
                run()
    return [len(clock.split()), len(drain.split()), ranges.count, count.count]


# --- eager ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_eager_passes_meet_the_same_sites_and_change_nothing(name: str) -> None:
    module, tokens = tiny_models.build(name), torch.arange(6).reshape(1, 6)
    found = counts(lambda: module(input_ids=tokens, use_cache=False), EagerSites)
    assert len(set(found)) == 1 and found[0] > 50
    with torch.no_grad():
        plain = module(input_ids=tokens, use_cache=False).logits
        with EagerSites(CountProbe()):
            assert torch.equal(module(input_ids=tokens, use_cache=False).logits, plain)


def test_nested_torch_calls_are_not_sites_and_properties_are() -> None:
    probe, x = CountProbe(), torch.ones(2, 3)
    with EagerSites(probe):
        nn.functional.layer_norm(x, (3,))  # calls torch.layer_norm inside
        x.shape  # noqa: B018
        x + x
    assert probe.count == 3


def test_an_eager_site_ends_when_its_call_raises() -> None:
    probe, x = ClockProbe(), torch.ones(2)
    with EagerSites(probe):
        with pytest.raises(RuntimeError):
            torch.mm(x, x)
        x + 1
    assert len(probe.stamps) == 4 and len(probe.split()) == 2


# --- probes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A clock that stands still until it is moved, in nanoseconds."""
    now = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])

    def advance(ns: int) -> None:
        now[0] += ns

    yield advance


def test_the_clock_probe_has_what_lies_inside_sites_alone(ticking: Callable[[int], None]) -> None:
    probe = ClockProbe()
    for site_ns, gap_ns in ((3_000, 500), (4_000, 1_500), (5_000, 0)):
        probe.enter()
        ticking(site_ns)
        probe.leave()
        ticking(gap_ns)
    assert probe.split() == [3.0, 4.0, 5.0]


def test_the_drain_lies_outside_the_site(ticking: Callable[[int], None]) -> None:
    probe = DrainProbe(lambda: ticking(100_000))
    for site_ns, gap_ns in ((3_000, 500), (4_000, 1_500), (5_000, 0)):
        probe.enter()
        ticking(site_ns)
        probe.leave()
        ticking(gap_ns)
    assert probe.split() == [3.0, 4.0, 5.0]


def test_no_site_and_one_site() -> None:
    for probe in (ClockProbe(), DrainProbe(lambda: None)):
        assert probe.split() == []
        probe.enter()
        probe.leave()
        assert len(probe.split()) == 1


@pytest.mark.parametrize("cost", [clock_cost_us, inline_cost_us])
def test_the_clocks_own_cost_is_measured(cost: Callable[[int], tuple[float, float]]) -> None:
    inside, outside = cost(200)
    assert 0.0 < inside < 50.0 and -1.0 < outside < 50.0


def test_a_clock_that_stands_still_is_told(ticking: Callable[[int], None]) -> None:
    with pytest.raises(MeasurementError, match="the monotonic clock does not advance"):
        clock_cost_us(10)


def test_a_clocked_callable_is_read_at_both_edges_also_when_it_raises(ticking: Callable[[int], None]) -> None:
    def call(ns: int) -> int:
        ticking(ns)
        return 1000 // ns

    stamps: list[int] = []
    assert clocked(call, None) is call
    assert clocked(call, stamps)(5) == 200
    with pytest.raises(ZeroDivisionError):
        clocked(call, stamps)(0)
    assert stamps == [0, 5, 5, 5]
    assert between([0, 5_000, 7_000, 8_000]) == [5.0, 1.0]


def test_ranges_carry_the_sites_number() -> None:
    probe = RangeProbe()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            probe.enter()
            torch.ones(1)
            probe.leave()
    names = [event.name for event in profiler.events() if event.name.startswith(RANGE)]
    assert names == [f"{RANGE}{number}" for number in range(3)]


# --- captured graphs ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two calls of one layer each, and a parameter that is fetched by attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(3, 3), nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(x)) * self.scale + x.sum()


def captured(module: Callable[..., Any], *args: Any) -> tuple[torch.fx.GraphModule, list[Any]]:
    """The graph that Dynamo hands to a backend, and its inputs."""
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        found.append((gm, example_inputs))
        return gm.forward

    with torch.no_grad():
        torch.compile(module, backend=backend)(*args)
    assert len(found) == 1
    gm, inputs = found[0]
    return gm, list(inputs)


def test_a_graph_with_probes_gives_identical_outputs_and_labels() -> None:
    gm, inputs = captured(Small(), torch.ones(2, 3))
    calls = sum(node.op.startswith("call_") for node in gm.graph.nodes)
    labels: list[Label] = []
    probe = CountProbe()
    with torch.no_grad():
        plain, watched = gm.forward(*inputs), instrument_graph(gm, probe, labels, lambda: 4)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert probe.count == len(labels) == calls
    assert [label.target for label in labels] == [
        "torch.nn.functional.linear",
        "torch.relu",
        "operator.mul",
        "Tensor.sum",
        "operator.add",
    ]
    assert {label.graph for label in labels} == {4}
    assert labels[0].module_path == "first"
    assert {Path(label.source.file).name for label in labels if label.source} == {Path(__file__).name}
    assert None not in {label.source for label in labels}


def test_every_pass_of_a_graph_meets_the_same_sites_and_the_last_probe_alone_is_called() -> None:
    gm, inputs = captured(Small(), torch.ones(2, 3))
    probes: list[Any] = [ClockProbe(), DrainProbe(lambda: None), RangeProbe(), CountProbe()]
    with torch.no_grad():
        for probe in probes:
            instrument_graph(gm, probe, None, lambda: 0)(*inputs)
    found = [len(probes[0].split()), len(probes[1].split()), probes[2].count, probes[3].count]
    assert found == [5, 5, 5, 5]


def test_the_graph_itself_stays_as_it_was() -> None:
    gm, inputs = captured(Small(), torch.ones(2, 3))
    code, nodes = gm.code, len(gm.graph.nodes)
    instrument_graph(gm, CountProbe(), None, lambda: 0)(*inputs)
    assert (gm.code, len(gm.graph.nodes)) == (code, nodes)


def test_graph_passes_of_a_transformers_model() -> None:
    module, tokens = tiny_models.build("llama"), torch.arange(6).reshape(1, 6)
    gm, inputs = captured(_Logits(module), tokens)
    labels: list[Label] = []
    with torch.no_grad():
        plain = gm.forward(*inputs)
        watched = instrument_graph(gm, CountProbe(), labels, lambda: 0)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    files = {Path(label.source.file).parts[-3] for label in labels if label.source}
    assert "torch" not in files and "models" in files
    paths = {label.module_path for label in labels if label.target == "torch.nn.functional.linear"}
    assert "model.model.layers.1.self_attn.q_proj" in paths


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def test_a_switch_runs_what_is_active() -> None:
    switch = GraphSwitch(lambda *args: ("plain", args))
    assert switch(1, 2) == ("plain", (1, 2))
    switch.active = lambda *args: "observed"
    assert switch(1) == "observed"


# --- Inductor's wrapper modules -------------------------------------------------------------------------------------


class CachingAutotuner:
    """Stands for Inductor's Triton kernel class, which is known by its name."""

    grid = "kept"

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def run(self, *args: Any, **kwargs: Any) -> None:
        """What a wrapper line calls."""
        self.log.append("kernel")


def wrapper() -> tuple[types.ModuleType, list[str], Callable[[], Any]]:
    """A module as Inductor generates them, its log, and its ``call``."""
    log: list[str] = []
    module = types.ModuleType("wrapper")
    vars(module).update(
        triton_poi_fused_add_0=CachingAutotuner(log),
        extern_kernels=types.SimpleNamespace(mm=lambda *a, out: log.append("mm"), constant=3),
        cpp_fused_mul_1=lambda *args: log.append("cpp"),
        empty_strided_cpu=lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype),
        torch=torch,
        aten=torch.ops.aten,
        unrelated=len,
    )
    source = """
def call():
    buf = empty_strided_cpu((2,), (1,), torch.float32)
    triton_poi_fused_add_0.run(buf, stream=0)
    extern_kernels.mm(buf, buf, out=buf)
    cpp_fused_mul_1(buf)
    assert extern_kernels.constant == 3 and triton_poi_fused_add_0.grid == "kept" and unrelated([1]) == 1
    one = torch.ops.aten.add.Tensor(buf, buf)
    return aten.relu.default(one), aten.relu(one)
"""
    exec(source, vars(module))
    return module, log, vars(module)["call"]


TARGETS = [
    "aten.empty_strided.default",
    "triton:triton_poi_fused_add_0",
    "extern:mm",
    "cpp:cpp_fused_mul_1",
    "aten.add.Tensor",
    "aten.relu.default",
    "aten.relu",
]


def test_wrapper_lines_are_sites_with_labels_and_the_graph_they_belong_to() -> None:
    module, log, call = wrapper()
    labels: list[Label] = []
    probe = CountProbe()
    with wrapper_sites([module], probe, labels, lambda: 2):
        call()
    assert [label.target for label in labels] == TARGETS
    assert {label.graph for label in labels} == {2}
    assert probe.count == len(TARGETS)
    assert log == ["kernel", "mm", "cpp"]


def test_every_pass_of_a_wrapper_meets_the_same_sites() -> None:
    module, _, call = wrapper()
    assert counts(call, lambda probe: wrapper_sites([module], probe, None, lambda: 0)) == [len(TARGETS)] * 4


def test_the_code_of_a_wrapper_is_clocked_around_its_sites() -> None:
    module, _, call = wrapper()
    switch = GraphSwitch(call)
    module.call = switch  # type: ignore[attr-defined]
    probe = ClockProbe()
    with wrapper_sites([module], probe, None, lambda: 0):
        switch()
        switch()
    assert (len(probe.codes), len(probe.stamps), probe.graphs) == (4, 4 * len(TARGETS), [])
    for number in range(2):
        (entered, left), sites = probe.codes[2 * number : 2 * number + 2], 2 * len(TARGETS)
        inner = probe.stamps[number * sites : (number + 1) * sites]
        assert [entered, *inner, left] == sorted([entered, *inner, left])
    assert switch.active is call
    with wrapper_sites([module], CountProbe(), None, lambda: 0):
        assert switch.active is call  # only a clock has use for the edges


def test_a_wrappers_calls_are_ticked_where_its_stand_ins_found_them() -> None:
    module, log, call = wrapper()
    labels: list[Label] = []
    with wrapper_sites([module], CountProbe(), labels, lambda: 0):
        call()
    assert {spot[0] for label in labels for spot in label.spot} == {call.__code__}
    log.clear()
    ticks = Ticks(label.spot for label in labels)
    count, clock = CountProbe(), ClockProbe()
    for probe in (count, clock):
        with ticked_code([module], probe, ticks):
            call()
    # the same lines, and what they call is Inductor's own
    assert (count.count, len(clock.split())) == (len(TARGETS), len(TARGETS))
    assert log == ["kernel", "mm", "cpp"] * 2


def test_a_wrappers_names_are_restored_even_after_an_exception() -> None:
    module, _, call = wrapper()
    before = dict(vars(module))
    with pytest.raises(ZeroDivisionError), wrapper_sites([module], CountProbe(), None, lambda: 0):
        assert vars(module)["torch"] is not torch
        call()
        raise ZeroDivisionError
    assert {name: value for name, value in vars(module).items() if value is not before.get(name)} == {}

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError

    vars(module)["torch"] = Broken()  # breaks while the stand-ins are put up, after others are
    before = dict(vars(module))
    with pytest.raises(ZeroDivisionError), wrapper_sites([module], CountProbe(), None, lambda: 0):
        raise AssertionError("not reached")
    assert {name: value for name, value in vars(module).items() if value is not before.get(name)} == {}


# --- CUDA graphs ----------------------------------------------------------------------------------------------------


def test_graph_replays_are_sites_and_the_method_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[Any] = []

    def replay(graph: Any) -> None:
        replayed.append(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    labels: list[Label] = []
    probe = CountProbe()
    with pytest.raises(ZeroDivisionError), graph_replays(probe, labels):
        for number in range(2):
            torch.cuda.CUDAGraph.replay(number)  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert (replayed, probe.count) == ([0, 1], 2)
    assert [label.target for label in labels] == ["cudaGraphLaunch"] * 2
    assert torch.cuda.CUDAGraph.replay is replay
