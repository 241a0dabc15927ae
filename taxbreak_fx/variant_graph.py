"""One captured graph as a variant: compiled inside Dynamo's own compile, then run with no Dynamo around it."""

from __future__ import annotations

import contextlib
import copy
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.graph_facts import graph_skips
from taxbreak_fx.observe import Labels, graph_replays, instrument_graph, ticked_code, wrapper_sites
from taxbreak_fx.probes import Probe
from taxbreak_fx.ticks import Spot, node_spots
from taxbreak_fx.variant_record import GraphSkip
from taxbreak_fx.variants import Built, compile_inductor
from taxbreak_fx.wrapper_lines import Origins

GRAPHED = ("reduce-overhead", "cudagraphs")
WARM_CALLS = 3  # a CUDA graph: one run to warm up, one to record, one to replay


@dataclass
class Compiled:
    """A way of running one graph: the callable Dynamo could be handed, and what Inductor loaded for it."""

    name: str
    run: Callable[..., Any]
    seconds: float
    modules: list[types.ModuleType] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    graph_skips: list[GraphSkip] = field(default_factory=list)


def compile_graph(name: str, gm: torch.fx.GraphModule, example_inputs: list[Any], mode: str) -> Compiled:
    """Compile ``gm``; call it where a backend is called, since Inductor needs Dynamo's tracing context.

    ``mode`` is Inductor's.  Raises ``UsageError`` for an unknown name; the compilers' own errors pass through.
    """
    modules: list[types.ModuleType] = []
    notes: list[str] = []
    skips: list[GraphSkip] = []
    started = time.perf_counter()
    with graph_skips(notes, skips):
        run = _compile(name, gm, example_inputs, mode, modules)
    return Compiled(name, run, time.perf_counter() - started, modules, notes, skips)


def _compile(
    name: str, gm: torch.fx.GraphModule, example_inputs: list[Any], mode: str, modules: list[types.ModuleType]
) -> Callable[..., Any]:
    if name == "dynamo":
        return gm.forward
    twin = duplicate(gm)  # compilers rewrite the graph they are given
    if name in ("inductor", "reduce-overhead"):
        graphs = {"triton.cudagraphs": name == "reduce-overhead"}  # modes turn it on; here the variant decides
        return compile_inductor(twin, list(example_inputs), mode, modules, graphs)
    if name == "cudagraphs":
        from torch._dynamo.backends.cudagraphs import cudagraphs

        compiled: Callable[..., Any] = cudagraphs(twin, list(example_inputs))
        return compiled
    raise UsageError(f"unknown variant {name!r} of a captured graph")


def duplicate(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy with nodes of its own and the same tensors, with the marks by which AOTAutograd knows Dynamo's graphs."""
    graph = copy.deepcopy(gm.graph)
    for old, new in zip(gm.graph.nodes, graph.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):  # a plain attribute, which copying a node leaves behind
            new._dynamo_source = old._dynamo_source
    twin = torch.fx.GraphModule(gm, graph)
    twin.meta = dict(gm.meta)
    for name, value in vars(gm).items():
        if name not in vars(twin):
            setattr(twin, name, value)
    for name, child in gm.named_children():
        if isinstance(child, torch.fx.GraphModule):
            setattr(twin, name, duplicate(child))
    return twin


class GraphVariant(Built):
    """A compiled graph bound to inputs; ``call`` is one run, under autograd when ``grad``.

    Differs from ``torch.compile`` of a step in what surrounds it: no guards, no eval frame, no Python of the author's.
    """

    def __init__(self, compiled: Compiled, gm: torch.fx.GraphModule, inputs: list[Any], grad: bool) -> None:
        self.name = compiled.name
        self.graphed = compiled.name in GRAPHED
        self.uncompiled = False
        self.mechanism = "generated" if compiled.name == "dynamo" else "stand-in"
        self.build_calls = WARM_CALLS if self.graphed else 1
        self._gm, self._modules = gm, compiled.modules
        self._plain = self._active = compiled.run

        def call() -> Any:
            return self._active(*inputs)

        def call_with_grad() -> Any:
            # The bench measures under no_grad; this pair of switches costs a tenth of a microsecond, a context more.
            torch._C._set_grad_enabled(True)
            try:
                return self._active(*inputs)
            finally:
                torch._C._set_grad_enabled(False)

        super().__init__(call_with_grad if grad else call)
        self.notes = compiled.notes
        self.graph_skips = compiled.graph_skips if self.graphed else []

    def prepare(self) -> None:
        if self.graphed:
            torch.compiler.cudagraph_mark_step_begin()

    @contextlib.contextmanager
    def observe(
        self, probe: Probe, labels: Labels | None = None, mode: TorchDispatchMode | None = None
    ) -> Iterator[None]:
        plain = self._plain
        if self.name == "dynamo" and (self.ticks is None or labels is not None):
            plain = instrument_graph(self._gm, probe, labels, lambda: 1)

        def run(*args: Any) -> Any:
            if mode is None:
                return plain(*args)
            with mode:
                return plain(*args)

        self._active = run
        try:
            with self._surround(probe, labels):
                yield
        finally:
            self._active = self._plain

    def spots(self, labels: Labels) -> list[Sequence[Spot]]:
        return node_spots(self._gm) if self.name == "dynamo" else super().spots(labels)

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        if self.graphed:
            return graph_replays(probe, labels)
        if self.ticks is not None and labels is None:
            return ticked_code(self._modules, probe, self.ticks)
        if self.name == "dynamo":
            return contextlib.nullcontext()
        origins = [Origins(module, self._gm) for module in self._modules] if labels is not None else []
        return wrapper_sites(self._modules, probe, labels, lambda: 1, origins)

    def release(self) -> None:
        """Let go of the inputs and of the compiled code; what runs the graph from now on holds its own reference."""

        def released(*args: Any) -> Any:
            raise CaptureError("this variant was released; compile the graph again to run it")

        self.call, self._plain, self._active = released, released, released
        self._modules = []


def graph_tensors(gm: torch.fx.GraphModule) -> list[torch.Tensor]:
    """The tensors that the graph itself holds: parameters and buffers not lifted to inputs, and constants."""
    held = [*gm.parameters(), *gm.buffers()]
    held += [value for module in gm.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return held
