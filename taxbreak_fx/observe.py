"""How a probe reaches the sites of a running variant where its code is not rewritten: in recording, and as a fallback.

In-situ times come by clock reads in the code itself (``ticks``).  The mechanisms here record which calls there are and
where they stand, and serve instead, at a higher cost per call, where the code cannot be rewritten.  eager: a
TorchFunctionMode around each torch call.  Captured graph: calls generated around its nodes.  Inductor: thin stand-ins
for the names its wrapper module calls (kernels, extern calls, allocations).  The edges around whole graph callables and
wrapper code are always read here, and so is the replay call of a CUDA graph, the only way to its sites.  None changes
what runs; each is put on for one pass and taken off again.
"""

from __future__ import annotations

import contextlib
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from taxbreak_fx.probes import ClockProbe, Probe
from taxbreak_fx.record import SourceLine
from taxbreak_fx.sources import node_module_path, node_source
from taxbreak_fx.ticks import Spot, Ticks, innermost_spot
from taxbreak_fx.wrapper_lines import Origins


@dataclass(frozen=True)
class Label:
    """What a site is called: its target, where the author wrote it, and which graph call of the step it belongs to.

    ``spot``: the instruction of Inductor's wrapper code that calls it.
    """

    target: str
    source: SourceLine | None = None
    module_path: str | None = None
    graph: int = 0
    spot: tuple[Spot, ...] = ()


Labels = list[Label]


class EagerSites(TorchFunctionMode):
    """Every torch function, method and property of the uncompiled step is a site; nested torch calls are not."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._enter, self._leave = probe.enter, probe.leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The author may catch what a call raises: its site ends all the same.
        self._enter()
        try:
            return func(*args, **kwargs) if kwargs else func(*args)
        finally:
            self._leave()


class GraphSwitch:
    """The callable handed to Dynamo: runs ``plain``, or for the length of one pass something that observes it."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.active = plain

    def __call__(self, *args: Any) -> Any:
        return self.active(*args)


def clocked(call: Callable[..., Any], stamps: list[int] | None) -> Callable[..., Any]:
    """``call`` with the clock read at both its edges into ``stamps``; ``call`` itself without any."""
    if stamps is None:
        return call
    append, now = stamps.append, time.perf_counter_ns

    def reading(*args: Any) -> Any:
        append(now())
        try:
            return call(*args)
        finally:
            append(now())

    return reading


def instrument_graph(gm: torch.fx.GraphModule, probe: Probe, labels: Labels | None, ordinal: Callable[[], int]) -> Any:
    """``gm`` with ``probe.enter`` and ``probe.leave`` called around each call node; labels are added per call.

    The code is generated once per ``gm`` and only the two functions are exchanged: new code runs cold, which on a small
    graph takes longer than the graph.
    """
    found = _generated.get(gm)
    if found is None:
        found = _generated[gm] = _Watched(gm)
    watched = found
    watched.route(probe)
    if labels is None:
        return watched.forward

    def labelled(*args: Any) -> Any:
        number = ordinal()
        labels.extend(Label(label.target, label.source, label.module_path, number) for label in watched.labels)
        return watched.forward(*args)

    return labelled


def _enter() -> None:
    """Stands in the generated code where a probe's ``enter`` goes."""


def _leave() -> None:
    """Stands in the generated code where a probe's ``leave`` goes."""


class _Watched:
    """A graph with two exchangeable functions called around each of its call nodes."""

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        graph = torch.fx.Graph()
        mapping: dict[torch.fx.Node, torch.fx.Node] = {}
        self.labels: list[Label] = []
        for node in gm.graph.nodes:
            call = node.op.startswith("call_")
            if call:
                graph.call_function(_enter)
                self.labels.append(Label(node_target(node), node_source(node), node_module_path(node)))
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
            if call:
                graph.call_function(_leave)
        watched = torch.fx.GraphModule(gm, graph)
        self.forward = watched.forward
        self._names: dict[str, Any] = type(watched).forward.__globals__
        self._edges = [
            (name, value is _enter) for name, value in self._names.items() if value is _enter or value is _leave
        ]

    def route(self, probe: Probe) -> None:
        """Call ``probe`` from now on."""
        for name, entering in self._edges:
            self._names[name] = probe.enter if entering else probe.leave


_generated: weakref.WeakKeyDictionary[torch.fx.GraphModule, _Watched] = weakref.WeakKeyDictionary()


def node_target(node: torch.fx.Node) -> str:
    """The node's own Python target, qualified: ``torch.nn.functional.linear``, ``Tensor.view``."""
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    if node.op == "call_module":
        return str(node.target)
    return qualified_name(node.target)


_SHORT = {
    "torch._VariableFunctionsClass.": "torch.",
    "torch._tensor.Tensor.": "Tensor.",
    "TensorBase.": "Tensor.",
    "torch._C.TensorBase.": "Tensor.",
    "torch._C._nn.": "torch.nn.functional.",
    "_operator.": "operator.",
}  # where torch's callables live is not how people write them


def qualified_name(func: Any) -> str:
    """A readable, stable name of a torch callable."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)):
        return str(func)
    name = str(getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or type(func).__name__)
    if name.endswith("__get__"):
        return f"Tensor.{getattr(getattr(func, '__self__', None), '__name__', 'property')}"
    module = getattr(func, "__module__", None)
    full = f"{module}.{name}" if module and module != "builtins" else name
    for prefix, short in _SHORT.items():
        if full.startswith(prefix):
            return short + full[len(prefix) :]
    return full


@contextlib.contextmanager
def wrapper_sites(
    modules: list[types.ModuleType],
    probe: Probe,
    labels: Labels | None,
    ordinal: Callable[[], int],
    origins: Sequence[Origins] = (),
) -> Iterator[None]:
    """Route the kernel launches, extern calls and allocations of Inductor's wrapper modules through ``probe``.

    ``origins``, one per module, say where the labelled sites come from.
    """
    with _code_edges(modules, probe), _stand_ins(modules, probe, labels, ordinal, origins):
        yield


@contextlib.contextmanager
def ticked_code(modules: list[types.ModuleType], probe: Probe, ticks: Ticks) -> Iterator[None]:
    """As ``wrapper_sites``, where the places of the calls are known: by ticks in the wrapper modules' own code."""
    with _code_edges(modules, probe), ticks.installed(probe):
        yield


@contextlib.contextmanager
def _code_edges(modules: list[types.ModuleType], probe: Probe) -> Iterator[None]:
    """The clock read at both edges of the code of Inductor's wrapper modules, for a ``ClockProbe``."""
    switches = [module.call for module in modules if isinstance(module.call, GraphSwitch)]
    if isinstance(probe, ClockProbe):
        for switch in switches:
            switch.active = clocked(switch.plain, probe.codes)
    try:
        yield
    finally:
        for switch in switches:
            switch.active = switch.plain


@contextlib.contextmanager
def _stand_ins(
    modules: list[types.ModuleType],
    probe: Probe,
    labels: Labels | None,
    ordinal: Callable[[], int],
    origins: Sequence[Origins],
) -> Iterator[None]:
    replaced: list[tuple[dict[str, Any], str, Any]] = []

    def watch(number: int, target: str, function: Callable[..., Any]) -> Callable[..., Any]:
        enter, leave = probe.enter, probe.leave

        def site(*args: Any, **kwargs: Any) -> Any:
            enter()
            result = function(*args, **kwargs)
            leave()
            return result

        def labelled(*args: Any, **kwargs: Any) -> Any:
            assert labels is not None
            source, module_path = origins[number].of(target) if origins else (None, None)
            spot = tuple(innermost_spot(sys._getframe(1)))
            labels.append(Label(target, source, module_path, ordinal(), spot))
            return site(*args, **kwargs)

        return site if labels is None else labelled

    try:
        for number, module in enumerate(modules):
            names = vars(module)
            for name, value in list(names.items()):
                stand_in = _stand_in(name, value, partial(watch, number))
                if stand_in is not None:
                    replaced.append((names, name, value))
                    names[name] = stand_in
        yield
    finally:
        for names, name, value in replaced:
            names[name] = value


Watch = Callable[[str, Callable[..., Any]], Callable[..., Any]]


def _stand_in(name: str, value: Any, watch: Watch) -> Any:
    """What replaces ``name`` in a wrapper module while it is observed, or None to leave it."""
    if type(value).__name__ == "CachingAutotuner":
        return _Kernel(value, watch(f"triton:{name}", value.run))
    if name == "extern_kernels":
        return _Namespace(value, "extern:", watch)
    if name.startswith("cpp_fused") and callable(value):
        return watch(f"cpp:{name}", value)
    if name.startswith("empty_strided_") and callable(value):
        return watch("aten.empty_strided.default", value)
    if name == "torch":
        return _Torch(value, watch)
    if name == "aten":
        return _Ops(value, watch)
    return None


class _Kernel:
    """Stands for a Triton kernel of a wrapper module: the same object but for a watched ``run``."""

    def __init__(self, kernel: Any, run: Callable[..., Any]) -> None:
        self._kernel, self.run = kernel, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


class _Namespace:
    """A namespace of functions, each watched as ``prefix + its name``."""

    def __init__(self, namespace: Any, prefix: str, watch: Watch) -> None:
        self._namespace, self._prefix, self._watch = namespace, prefix, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._namespace, name)
        watched = self._watch(f"{self._prefix}{name}", value) if callable(value) else value
        setattr(self, name, watched)
        return watched


class _Ops:
    """``torch.ops`` and its namespaces and packets: only overloads and packets that are called become sites."""

    def __init__(self, ops: Any, watch: Watch) -> None:
        self._ops, self._watch = ops, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ops, name)
        if isinstance(value, torch._ops.OpOverload):
            watched: Any = self._watch(str(value), value)
        elif isinstance(value, (torch._ops._OpNamespace, torch._ops.OpOverloadPacket)):
            watched = _Ops(value, self._watch)
        else:
            return value
        setattr(self, name, watched)
        return watched

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch(str(self._ops), self._ops)(*args, **kwargs)


class _Torch:
    """The module ``torch`` as a wrapper sees it, with a watched ``torch.ops``."""

    def __init__(self, module: types.ModuleType, watch: Watch) -> None:
        self._module = module
        self.ops = _Ops(module.ops, watch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def graph_replays(probe: Probe, labels: Labels | None) -> Iterator[None]:
    """Every ``CUDAGraph.replay`` of the step is a site."""
    replay = torch.cuda.CUDAGraph.replay

    def watched(graph: torch.cuda.CUDAGraph) -> None:
        if labels is not None:
            labels.append(Label("cudaGraphLaunch", graph=len(labels)))
        probe.enter()
        replay(graph)
        probe.leave()

    torch.cuda.CUDAGraph.replay = watched  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign]
