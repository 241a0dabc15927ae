"""What calls and graph nodes are named by: their targets, the author's lines and module paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_observe import Small, captured
from torch import nn

from taxbreak_fx.observe import node_target, qualified_name
from taxbreak_fx.sources import module_names, node_module_path, node_source, stack_source


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.add, "torch.add"),
        (torch.Tensor.view, "Tensor.view"),
        (torch.Tensor.add_, "Tensor.add_"),
        (nn.functional.linear, "torch.nn.functional.linear"),
        (nn.functional.layer_norm, "torch.nn.functional.layer_norm"),
        (torch.Tensor.shape.__get__, "Tensor.shape"),
        (torch.ops.aten.mm.default, "aten.mm.default"),
        (torch.ops.aten.mm, "aten.mm"),
        (len, "len"),
    ],
)
def test_functions_are_named_as_people_write_them(function: Any, name: str) -> None:
    assert qualified_name(function) == name


def test_targets_of_graph_nodes() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    assert node_target(graph.call_method("view", (x, -1))) == "Tensor.view"
    assert node_target(graph.call_module("layers.0", (x,))) == "layers.0"
    assert node_target(graph.call_function(torch.relu, (x,))) == "torch.relu"


def test_sources_and_module_paths_of_graph_nodes() -> None:
    node = torch.fx.Graph().placeholder("x")
    assert (node_source(node), node_module_path(node)) == (None, None)
    torch_line = f'  File "{nn.__file__}", line 7, in forward\n'
    node.meta["stack_trace"] = f'  File "/a/model.py", line 3, in forward\n    x\n{torch_line}'
    source = node_source(node)
    assert source is not None and (source.file, source.line) == ("/a/model.py", 3)
    assert stack_source(torch_line) is None and stack_source(None) is None


GLOBAL_MODEL = Small()


def test_module_paths_are_spelt_as_named_modules_spells_them() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.by_name = nn.ModuleList([Small(), Small()]), nn.ModuleDict({"a": Small()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.by_name["a"](self.layers[1](self.layers[0](x)))

    def paths(step: Any) -> set[str | None]:
        gm, _ = captured(step, torch.ones(2, 3))
        return {node_module_path(node) for node in gm.graph.nodes if node.op.startswith("call_")}

    nested = Nested()
    assert paths(nested) == {path for path, _ in nested.named_modules()} - {"", "layers", "by_name"}
    assert paths(lambda x: nested(x)) == paths(nested)
    assert paths(lambda x: GLOBAL_MODEL(x)) == {None, "first"}


def test_module_names_are_by_identity() -> None:
    shared = nn.Linear(1, 1)
    outer = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    names = module_names([outer, 3])
    assert names[id(shared)] == "a" and names[id(outer["b"])] == "b"
