"""The kernels Inductor made of a step and the nodes of Dynamo's graph in each, as its scheduler decided them.

Read from the scheduler itself, since C++ wrappers carry no comments and put several fused loops into one function.
That needs a compile: the caches of compiled graphs are switched off for it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from msgspec import structs

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.fusion_agreement import Declined, FusedKernel, Kernels
from taxbreak_fx.variants import compile_inductor
from taxbreak_fx.workload import Workload

NO_CACHES = {"fx_graph_cache": False, "fx_graph_remote_cache": False}
_PART = re.compile(r"op\d+")


class FusionWatch:
    """Collects, while ``watching``, what every scheduler of Inductor decides; ``graph`` numbers the Dynamo graphs."""

    def __init__(self) -> None:
        self.graph = 0
        self.made: dict[int, list[FusedKernel]] = {}
        self.declined: list[Declined] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to Inductor's scheduler.  Raises ``CaptureError`` where this torch has none that can be heard."""
        try:
            from torch._inductor.scheduler import Scheduler, WhyNoFuse

            codegen, why = Scheduler.codegen, WhyNoFuse.__call__
        except (ImportError, AttributeError) as error:
            raise CaptureError(
                f"Inductor's scheduler of torch {torch.__version__} cannot be watched ({error}); use torch 2.11 to 2.13"
            ) from error

        def decided(scheduler: Any) -> Any:
            self.made[self.graph] = list(_kernels(scheduler.nodes, self.graph))
            return codegen(scheduler)

        def refused(heard: Any, reason: str, *args: Any) -> Any:
            said = reason % args if args else reason
            first, second = (tuple(_PART.findall(name)) for name in (heard.name1, heard.name2))
            self.declined.append(Declined(graph=self.graph, first=first, second=second, reason=said))
            return why(heard, reason, *args)

        with mock.patch.object(Scheduler, "codegen", decided), mock.patch.object(WhyNoFuse, "__call__", refused):
            yield

    def kernels(self) -> Kernels:
        """Everything heard, graph by graph."""
        return Kernels(kernels=[k for graph in sorted(self.made) for k in self.made[graph]], declined=self.declined)


def inductor_kernels(workload: Workload, options: dict[str, Any] | None = None) -> Kernels:
    """Compile the step with Inductor and run it once, under no_grad; what its scheduler made of each graph.

    ``options``: Inductor's.  Graphs are numbered in the order in which the step calls them, as ``captured_graph`` does;
    a graph that is called twice counts as two.  The state the step writes stays written; the caller restores it.
    """
    watch = FusionWatch()
    compiled = 0
    calls: list[int] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        nonlocal compiled
        watch.graph, compiled = compiled, compiled + 1
        number, modules = watch.graph, list[types.ModuleType]()
        with watch.watching():
            run = compile_inductor(gm, example_inputs, "default", modules, {**NO_CACHES, **(options or {})})

        def call(*args: Any) -> Any:
            calls.append(number)
            return run(*args)

        return call

    with torch.no_grad():
        torch.compile(workload.call, backend=backend)(*workload.args, **workload.kwargs)
    return _by_call(watch.kernels(), calls)


def _by_call(made: Kernels, calls: list[int]) -> Kernels:
    """Kernels numbered by the graph calls of the step instead of by compilation."""
    kernels: list[FusedKernel] = []
    declined: list[Declined] = []
    for position, number in enumerate(calls):
        kernels += [structs.replace(kernel, graph=position) for kernel in made.kernels if kernel.graph == number]
        declined += [structs.replace(said, graph=position) for said in made.declined if said.graph == number]
    return Kernels(kernels=kernels, declined=declined)


def _kernels(nodes: Any, graph: int) -> Iterator[FusedKernel]:
    from torch._inductor.ir import MultiOutput
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    for node in nodes:
        if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
            continue  # a view, or one of the results of another call: nothing is launched
        extern = isinstance(node, ExternKernelSchedulerNode)
        parts = [part for part in node.get_nodes() if part.node is not None]
        stored = dict.fromkeys(name for part in parts if (name := _stored(part.node)))
        origins = [origin for part in parts for origin in part.node.get_origins() if origin.op.startswith("call_")]
        # What an extern call reads is computed elsewhere, yet stands among its origins.
        computed = dict.fromkeys([] if extern else [_dynamo_name(origin) for origin in origins])
        yield FusedKernel(
            name=str(getattr(node.node, "python_kernel_name", None) or node.get_name()) if extern else node.get_name(),
            extern=extern,
            nodes=tuple(sorted(stored | computed)),
            stores=tuple(stored),
            graph=graph,
            parts=tuple(_PART.findall(node.get_name())),
        )


def _stored(buffer: Any) -> str | None:
    """The node whose result a buffer holds: its own origin, else the last of those it came from."""
    origin = buffer.get_origin_node()
    if origin is None:
        came = sorted((o for o in buffer.get_origins() if o.op.startswith("call_")), key=_position)
        origin = came[-1] if came else None
    return None if origin is None or not origin.op.startswith("call_") else _dynamo_name(origin)


def _position(node: torch.fx.Node) -> int:
    return next(index for index, other in enumerate(node.graph.nodes) if other is node)


def _dynamo_name(node: torch.fx.Node) -> str:
    """The node of Dynamo's graph that a lowered node came from; its own name where that was lost."""
    came = node.meta.get("from_node")
    return str(came[0].name) if came else node.name
