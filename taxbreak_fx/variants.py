"""The ways of running a step.  A variant builds itself, describes itself, and says how its sites are reached.

``Variant.build`` compiles the workload and returns a ``Built``; the caller runs ``Built.call`` once or more to finish
compilation.  Building never touches process-wide configuration except inside the calls that need it.
"""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast
from unittest import mock

import torch
import torch._dynamo
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, on_compile_end, on_compile_start
from torch.utils._python_dispatch import TorchDispatchMode

from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.graph_facts import graph_info
from taxbreak_fx.model import GraphInfo
from taxbreak_fx.observe import (
    EagerSites,
    GraphSwitch,
    Labels,
    clocked,
    graph_replays,
    instrument_graph,
    ticked_code,
    wrapper_sites,
)
from taxbreak_fx.probes import ClockProbe, Probe
from taxbreak_fx.state import Snapshot
from taxbreak_fx.ticks import Spot, Ticks, node_spots
from taxbreak_fx.variant_record import GraphSkip
from taxbreak_fx.workload import Workload
from taxbreak_fx.wrapper_lines import Origins

Compiling = Callable[[], contextlib.AbstractContextManager[None]]
GRAPH_WARMUP_STEPS = 3  # torch.cuda.graph asks for eager runs on a side stream before capture


class Built:
    """A variant ready to run: ``call`` runs one step; ``prepare`` is what a serving loop does between steps."""

    uncompiled = True
    graphed = False
    mechanism = "function mode"
    build_calls = 1

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.graphs: list[GraphInfo] = []
        self.notes: list[str] = []
        self.graph_skips: list[GraphSkip] = []
        self.ticks: Ticks | None = None  # how the sites are reached, once their places in the code are found

    def tick(self, ticks: Ticks | None, mechanism: str = "ticks") -> None:
        """Reach the sites of the step by ticks in its code, from now on; or, given None, by ``mechanism`` again."""
        self.ticks, self.mechanism = ticks, mechanism

    def spots(self, labels: Labels) -> list[Sequence[Spot]]:
        """Where the code that a variant generated makes the calls that were labelled in one pass, for ``Ticks``."""
        return [label.spot for label in labels]

    def prepare(self) -> None:
        """Nothing to do between steps, unless a variant says so."""

    @contextlib.contextmanager
    def observe(
        self, probe: Probe, labels: Labels | None = None, mode: TorchDispatchMode | None = None
    ) -> Iterator[None]:
        """Route every site of the next step through ``probe``; ``mode`` is entered where the ops are dispatched."""
        with EagerSites(probe) if self.ticks is None else self.ticks.installed(probe):
            yield

    def release(self) -> None:
        """Drop compiled code and graph pools, so that the next variant starts from the same memory."""


class _Compiled(Built):
    """A step under torch.compile; one ``GraphSwitch`` per graph that Dynamo hands over."""

    uncompiled = False

    def __init__(self, workload: Workload, compiling: Compiling) -> None:
        self._switches: list[tuple[GraphSwitch, torch.fx.GraphModule]] = []
        self._calls = 0
        _while_compiling(compiling)
        compiled = torch.compile(workload.call, backend=self._backend)
        super().__init__(lambda: compiled(*workload.args, **workload.kwargs))

    def _backend(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append(graph_info(gm))
        switch = GraphSwitch(self._compile(gm, example_inputs))
        self._switches.append((switch, gm))
        return switch

    def _compile(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def _watch(self, probe: Probe, labels: Labels | None, gm: torch.fx.GraphModule, plain: Callable[..., Any]) -> Any:
        """What a graph runs while observed."""
        return plain

    @contextlib.contextmanager
    def observe(
        self, probe: Probe, labels: Labels | None = None, mode: TorchDispatchMode | None = None
    ) -> Iterator[None]:
        self._calls = 0

        def entered(run: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                self._calls += 1
                if mode is None:
                    return run(*args)
                with mode:
                    return run(*args)

            return clocked(call, probe.graphs if isinstance(probe, ClockProbe) else None)

        for switch, gm in self._switches:
            switch.active = entered(self._watch(probe, labels, gm, switch.plain))
        try:
            with self._surround(probe, labels):
                yield
        finally:
            for switch, _ in self._switches:
                switch.active = switch.plain

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def release(self) -> None:
        self._switches.clear()
        self.call = _released
        torch._dynamo.reset()
        gc.collect()


class _Dynamo(_Compiled):
    mechanism = "generated"

    def _compile(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return gm.forward

    def spots(self, labels: Labels) -> list[Sequence[Spot]]:
        return [spot for _, gm in self._switches for spot in node_spots(gm)]

    def _watch(self, probe: Probe, labels: Labels | None, gm: torch.fx.GraphModule, plain: Callable[..., Any]) -> Any:
        if self.ticks is not None and labels is None:
            return plain
        return instrument_graph(gm, probe, labels, lambda: self._calls)

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        if self.ticks is not None and labels is None:
            return self.ticks.installed(probe)
        return contextlib.nullcontext()


class _Inductor(_Compiled):
    mechanism = "stand-in"

    def __init__(self, workload: Workload, compiling: Compiling, mode: str = "default") -> None:
        self._mode = mode
        self._modules: list[types.ModuleType] = []
        self._sources: list[torch.fx.GraphModule] = []  # the graph each wrapper module was made from
        super().__init__(workload, compiling)

    def _compile(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        compiled = compile_inductor(gm, example_inputs, self._mode, self._modules)
        self._sources += [gm] * (len(self._modules) - len(self._sources))
        return compiled

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        if self.ticks is not None and labels is None:
            return ticked_code(self._modules, probe, self.ticks)
        pairs = zip(self._modules, self._sources, strict=True) if labels is not None else ()
        origins = [Origins(module, gm) for module, gm in pairs]
        return wrapper_sites(self._modules, probe, labels, lambda: self._calls, origins)


class _GraphTrees(_Inductor):
    graphed = True
    build_calls = 3  # cudagraph trees: one eager warm-up, one recording, one replay

    def __init__(self, workload: Workload, compiling: Compiling) -> None:
        super().__init__(workload, compiling, "reduce-overhead")

    def prepare(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        return graph_replays(probe, labels)

    def release(self) -> None:
        super().release()
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()
        _empty_cache()


class _CudaGraphsBackend(_Compiled):
    graphed = True
    mechanism = "stand-in"
    build_calls = 3

    def _compile(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.cudagraphs import cudagraphs

        compiled: Callable[..., Any] = cudagraphs(gm, example_inputs)
        return compiled

    def prepare(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()

    def _surround(self, probe: Probe, labels: Labels | None) -> contextlib.AbstractContextManager[None]:
        return graph_replays(probe, labels)

    def release(self) -> None:
        super().release()
        _empty_cache()


class _EagerGraph(Built):
    uncompiled = False
    graphed = True
    mechanism = "stand-in"

    def __init__(self, workload: Workload, snapshot: Snapshot) -> None:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARMUP_STEPS):
                snapshot.restore()
                workload.run()
        torch.cuda.current_stream().wait_stream(side)
        snapshot.restore()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            outputs = workload.run()

        def replay() -> Any:
            graph.replay()
            return outputs

        super().__init__(replay)
        self._graph: torch.cuda.CUDAGraph | None = graph

    @contextlib.contextmanager
    def observe(
        self, probe: Probe, labels: Labels | None = None, mode: TorchDispatchMode | None = None
    ) -> Iterator[None]:
        with graph_replays(probe, labels):
            yield

    def release(self) -> None:
        self.call = _released
        if self._graph is not None:
            self._graph.reset()
        self._graph = None
        _empty_cache()


DESCRIPTIONS = {
    "eager": "the step as written",
    "dynamo": "the captured graph run as it is: torch.compile with a backend that returns gm.forward",
    "inductor": "torch.compile with the default mode of Inductor",
    "reduce-overhead": "Inductor with CUDA graph trees",
    "cudagraphs": "torch.compile(backend='cudagraphs'): the captured graph replayed as a CUDA graph",
    "eager-graph": "the uncompiled step captured by torch.cuda.graph",
}


def build(name: str, workload: Workload, snapshot: Snapshot, compiling: Compiling = contextlib.nullcontext) -> Built:
    """Build a variant by name.  Inside ``compiling`` Dynamo captures, and a graph is compiled: nothing runs on the
    device then.

    Raises ``UsageError`` for an unknown name, ``CaptureError`` when the step cannot be captured; torch's own errors
    (out of memory, unsupported op) pass through and cost this variant only.
    """
    if name == "eager":
        return Built(workload.run)
    if name == "dynamo":
        return _Dynamo(workload, compiling)
    if name == "inductor":
        return _Inductor(workload, compiling)
    if name == "reduce-overhead":
        return _GraphTrees(workload, compiling)
    if name == "cudagraphs":
        return _CudaGraphsBackend(workload, compiling)
    if name == "eager-graph":
        return _EagerGraph(workload, snapshot)
    raise UsageError(f"unknown variant {name!r}; known: {', '.join(DESCRIPTIONS)}")


def _while_compiling(compiling: Compiling) -> None:
    """Enter ``compiling`` while Dynamo captures a frame and its backend compiles it, until ``torch._dynamo.reset``."""
    entered = contextlib.ExitStack()

    def start(args: CallbackArgs) -> None:
        if args.callback_trigger is CallbackTrigger.DYNAMO:  # CUDA graphs are recorded on the device
            entered.enter_context(compiling())

    on_compile_start(start)
    on_compile_end(lambda args: entered.close())


def compile_inductor(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    mode: str,
    modules: list[types.ModuleType],
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Inductor's callable for ``gm``; ``modules`` receives the wrapper modules that it loads."""
    from torch._inductor import list_mode_options
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.compile_fx import compile_fx

    load = PyCodeCache.load_by_key_path

    def loading(*args: Any, **kwargs: Any) -> types.ModuleType:
        module = load(*args, **kwargs)
        if hasattr(module, "call") and module not in modules:
            if not isinstance(module.call, GraphSwitch):  # two variants may share a module
                module.call = GraphSwitch(module.call)  # type: ignore[attr-defined]
            modules.append(module)
        return module

    patches = {**(list_mode_options(mode) if mode != "default" else {}), **(options or {})}
    with mock.patch.object(PyCodeCache, "load_by_key_path", loading):
        compiled: Any = compile_fx(gm, example_inputs, config_patches=patches)
    return cast(Callable[..., Any], compiled)


def _released() -> Any:
    raise CaptureError("this variant was released; build it again to run it")


def _empty_cache() -> None:
    gc.collect()
    torch.cuda.empty_cache()
