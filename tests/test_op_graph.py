"""The op graph of real steps on the CPU: data edges, in-place writes, source lines; blockers at the author's line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import networkx
import pytest
import tiny_models
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from taxbreak_fx.capturable import Blocker, capturable
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.fusion import FusionGroup, fusible_groups
from taxbreak_fx.model import StepInfo
from taxbreak_fx.op_graph import BETWEEN, Target, captured_graph, eager_graph
from taxbreak_fx.step_graph import StepGraph
from taxbreak_fx.workload import Workload

BOTH = pytest.mark.parametrize("graph_of", [captured_graph, eager_graph])
GraphOf = Callable[[Workload, Target], StepGraph]


def workload(call: Callable[..., Any], *args: Any) -> Workload:
    step = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cpu")
    return Workload(call=call, model="tiny", step=step, args=args)


def line_of(function: Callable[..., Any], text: str) -> int:
    """The line of this file on which ``function`` says ``text``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def named(graph: StepGraph, name: str) -> list[int]:
    return [index for index, op in enumerate(graph.ops) if op.op.split(".")[1] == name]


def chain_step(x: torch.Tensor) -> torch.Tensor:
    y = torch.relu(x.t())
    y.mul_(2)
    return torch.softmax(y, -1)


@BOTH
def test_edges_views_and_writes_of_a_small_step(graph_of: GraphOf) -> None:
    graph = graph_of(workload(chain_step, torch.randn(4, 8)), "cuda")
    assert [op.op for op in graph.ops] == [
        "aten.t.default", "aten.relu.default", "aten.mul_.Tensor", "aten._softmax.default",
    ]  # fmt: skip
    view, relu, mul, softmax = graph.ops
    assert [op.role for op in graph.ops] == ["view", "pointwise", "pointwise", "row"]
    assert [op.launches for op in graph.ops] == [0, 1, 1, 1]
    assert view.operands[0].input == graph.inputs[0].name and view.operands[0].bytes == 4 * 8 * 4
    assert [operand.op for operand in relu.operands] == [0]
    assert mul.writes_in_place and not mul.mutates and not mul.after
    # The softmax reads what mul_ wrote into relu's result; all bytes are read once.
    assert softmax.operands[-1].op == 2 and softmax.read_bytes == 4 * 8 * 4
    assert (softmax.domain, softmax.reduced, softmax.escapes) == ((8, 4), (1,), True)
    assert (relu.escapes, softmax.source) != (True, None)
    assert softmax.source is not None and softmax.source.file == __file__
    assert softmax.source.line == line_of(chain_step, "softmax")
    assert [group.ops for group in fusible_groups(graph).groups] == [(1, 2, 3)]


def read_then_write(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = x + 1
    x.mul_(2)
    return before, x - 1


@BOTH
def test_a_write_comes_after_those_who_read_the_old_value(graph_of: GraphOf) -> None:
    graph = graph_of(workload(read_then_write, torch.ones(4)), "cuda")
    before, write, after = named(graph, "add") + named(graph, "mul_") + named(graph, "sub")
    assert graph.ops[write].after == (before,)
    assert graph.ops[write].mutates == (graph.inputs[0].name,)
    assert graph.ops[after].operands[-1].op == write
    assert all({before, write} - set(group.ops) for group in fusible_groups(graph).groups)


def tiny(name: str) -> tuple[torch.nn.Module, Workload]:
    module = tiny_models.build(name)
    _, call = next(tiny_models.steps(module, cache="dynamic"))
    return module, workload(call)


def check_legal(graph: StepGraph, groups: list[FusionGroup]) -> None:
    edges = networkx.DiGraph()
    for index, op in enumerate(graph.ops):
        edges.add_edges_from((each.op, index) for each in op.operands if each.op is not None)
        edges.add_edges_from((before, index) for before in op.after)
    home = {index: number for number, group in enumerate(groups) for index in group.ops}
    contracted = networkx.DiGraph(
        (home.get(a, -1 - a), home.get(b, -1 - b)) for a, b in edges.edges if home.get(a, -1 - a) != home.get(b, -1 - b)
    )
    assert networkx.is_directed_acyclic_graph(contracted)


def names(graph: StepGraph, group: FusionGroup) -> list[str]:
    return [graph.ops[index].op.split(".")[1] for index in group.ops if graph.ops[index].role != "view"]


@BOTH
def test_gpt2_groups(graph_of: GraphOf) -> None:
    _, step = tiny("gpt2")
    graph = graph_of(step, "cuda")
    groups = fusible_groups(graph).groups
    check_legal(graph, groups)
    found = [names(graph, group) for group in groups]
    # Two layers: GELU written out in eight ops between two products; the residual and the norm that reads it.
    assert found.count(["mul", "pow", "mul", "add", "mul", "tanh", "add", "mul"]) == 2
    assert found.count(["add", "native_layer_norm"]) == 4  # two norms a layer but the first, and the last one
    gelu = next(group for group in groups if "aten.tanh.default" in group.names)
    assert (gelu.end, gelu.launches_before) == ("extern", 8)
    assert {source.file.rsplit("/", 1)[-1] for source in gelu.sources} == {"activations.py"}
    assert all(path.endswith("mlp.act") for path in gelu.module_paths)
    assert {op.library for op in graph.ops if op.family == "gemm"} <= {"cuBLAS", "cuBLASLt"}


def test_a_llama_block_captured() -> None:
    _, step = tiny("llama")
    graph = captured_graph(step, "cuda")
    groups = fusible_groups(graph).groups
    check_legal(graph, groups)
    found = [names(graph, group) for group in groups]
    # RMS norm, with the residual in front of it where there is one; SiLU of the gate times the other product.
    norm = ["pow", "mean", "add", "rsqrt", "mul", "mul"]
    assert sum(group[-6:] == norm for group in found) == 5
    assert found.count(["add", *norm]) == 4
    assert found.count(["silu", "mul"]) == 2
    assert all(op.source is not None for op in graph.ops)
    assert {entry.static for entry in graph.inputs if "weight" in entry.name} == {True}


def test_the_eager_step_and_dynamos_graph_hold_the_same_products() -> None:
    graphs = [graph_of(tiny("llama")[1], "cpu") for graph_of in (captured_graph, eager_graph)]
    counted = [[op.op for op in graph.ops if op.family in ("gemm", "attention")] for graph in graphs]
    # A layer: q, k, v, attention, o, gate, up, down; before them the rotary angles, behind them the logits.
    assert counted[0] == counted[1] and len(counted[0]) == 1 + 2 * 8 + 1


def item_step(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    scale = y.sum().item()
    return y * scale


def nonzero_step(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    found = y.nonzero()
    return found + 1


def write_step(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    x.mul_(2)
    return y


def foreign_step(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y = y + torch.tensor(3.0)
    return y * 4


STEPS = {
    "host sync": (item_step, ".item()"),
    "data-dependent op": (nonzero_step, ".nonzero()"),
    "mutated input": (write_step, "x.mul_(2)"),
}


def blockers_of(graph: StepGraph, kind: str, device: str | None = None) -> list[Blocker]:
    return [blocker for blocker in capturable(graph, device).blockers if blocker.kind == kind]


@BOTH
@pytest.mark.parametrize("kind", STEPS)
def test_a_blocker_stands_at_the_authors_line(graph_of: GraphOf, kind: str) -> None:
    function, text = STEPS[kind]
    graph = graph_of(workload(function, torch.ones(4)), "cuda")
    found = blockers_of(graph, kind)
    assert len(found) == 1
    assert found[0].source is not None and found[0].source.file == __file__
    assert found[0].source.line == line_of(function, text)
    assert not capturable(graph).whole


@BOTH
def test_a_cpu_tensor_in_a_step_of_another_device(graph_of: GraphOf) -> None:
    # The meta device stands for a GPU: it too refuses CPU tensors but for single numbers.
    graph = graph_of(workload(foreign_step, torch.ones(4, device="meta")), "cuda")
    found = blockers_of(graph, "CPU tensor", "meta")
    lines = {blocker.source.line for blocker in found if blocker.source is not None}
    assert lines == {line_of(foreign_step, "torch.tensor(3.0)")}


def test_ops_after_a_break_read_what_stood_before_it() -> None:
    graph = captured_graph(workload(item_step, torch.ones(4)), "cuda")
    first, last = named(graph, "mul")
    assert (graph.ops[first].graph, graph.ops[last].graph) == (0, 1)
    assert graph.ops[last].operands[0].op == first
    assert graph.ops[first].escapes and graph.notes == [BETWEEN]


def test_varying_sizes_are_flagged() -> None:
    x = torch.ones(6, 4)
    torch._dynamo.mark_dynamic(x, 0)
    graph = captured_graph(workload(lambda x: x * 2 + 1, x), "cuda")
    assert [(op.shape, op.dynamic) for op in graph.ops] == [((6, 4), True)] * 2
    assert [entry.dynamic for entry in graph.inputs] == [True]


def test_fake_tensors_serve_as_well() -> None:
    with FakeTensorMode():
        module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8)).eval()
        graph = eager_graph(workload(module, torch.empty(2, 8)), "cuda")
    assert [names(graph, group) for group in fusible_groups(graph).groups] == [["gelu", "native_layer_norm"]]
    assert [op.module_path for op in graph.ops if op.role != "view"] == ["0", "1", "2"]


def test_a_step_that_dynamo_cannot_capture_is_refused() -> None:
    with pytest.raises(CaptureError, match="Dynamo captured no graph of tiny"):
        captured_graph(workload(sys.getrecursionlimit), "cuda")
