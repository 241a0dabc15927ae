"""Inductor's own comments lead from a wrapper line back to the author's."""

from __future__ import annotations

import types
from pathlib import Path

import torch

from taxbreak_fx.record import SourceLine
from taxbreak_fx.variants import compile_inductor
from taxbreak_fx.wrapper_lines import Origins

WRAPPER = """
# Topologically Sorted Source Nodes: [add, gelu], Original ATen: [aten.add, aten.gelu]
triton_poi_fused_add_gelu_0 = async_compile.triton('triton_', '...')
cpp_fused_1 = async_compile.cpp_pybinding(['float*'])
def call(self, args):
    # Topologically Sorted Source Nodes: [linear], Original ATen: [aten.addmm]
    extern_kernels.addmm(arg0, arg1, arg2, out=buf0)
    # Topologically Sorted Source Nodes: [linear_1, unknown], Original ATen: [aten.addmm]
    extern_kernels.addmm(arg0, arg1, arg2, out=buf1)
    # Topologically Sorted Source Nodes: [gelu], Original ATen: [aten.cumsum]
    buf2 = torch.ops.aten.cumsum.default(buf1, dim=-1)
"""


def graph(**lines: int) -> torch.fx.GraphModule:
    """A graph whose nodes have these names and come from these lines of /author/model.py."""
    made = torch.fx.Graph()
    for name, line in lines.items():
        node = made.call_function(torch.numel, name=name)
        node.meta["stack_trace"] = f'  File "/author/model.py", line {line}, in forward\n    x = y\n'
    return torch.fx.GraphModule(torch.nn.Module(), made)


def author(line: int) -> SourceLine:
    return SourceLine(file="/author/model.py", line=line)


def test_kernels_by_name_and_extern_calls_by_turn(tmp_path: Path) -> None:
    module = types.ModuleType("wrapper")
    module.__file__ = str(tmp_path / "wrapper.py")
    Path(module.__file__).write_text(WRAPPER)
    origins = Origins(module, graph(add=1, gelu=2, linear=3, linear_1=4))
    # A fused kernel stands at the node whose result it stores, the last; a C++ kernel has no comment of its own.
    assert origins.of("triton:triton_poi_fused_add_gelu_0") == (author(2), None)
    assert origins.of("cpp:cpp_fused_1") == (None, None)
    # Two turns a step, and the next step starts over.
    turns = [origins.of("extern:addmm")[0] for _ in range(3)]
    assert turns == [author(3), author(4), author(3)]
    assert origins.of("aten.cumsum.default") == (author(2), None)
    assert origins.of("aten.empty_strided.default") == origins.of("extern:mm") == (None, None)


def test_a_real_wrapper_leads_back_to_this_file() -> None:
    found: list[tuple[SourceLine | None, str | None]] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> object:
        modules: list[types.ModuleType] = []
        compiled = compile_inductor(gm, example_inputs, "default", modules)
        found.append(Origins(modules[0], gm).of("extern:mm"))
        return compiled

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, x)

    with torch.no_grad():
        torch.compile(step, backend=backend)(torch.ones(4, 4))
    source, _ = found[0]
    assert source is not None
    assert (source.file, source.line) == (__file__, step.__code__.co_firstlineno + 1)
