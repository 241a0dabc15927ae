"""Inductor's plan for a captured graph: the launches its wrapper would make, in order, with nothing compiled or run."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from taxbreak_fx.predicted import Origin, PlannedAllocation, PlannedLaunch
from taxbreak_fx.sources import node_module_path, node_source

# A wrapper line of each kind launches once; these names are the same in every release that the patches cover.
KERNEL_LINE = "KernelCallLine"
EXTERN_LINES = (
    "ExternKernelOutLine",
    "ExternKernelAllocLine",
    "ExternKernelMultiOutLine",
    "IndexPutFallbackLine",
    "ScatterFallbackLine",
)


class Plan:
    """The wrapper that Inductor generated for one graph, read before Inductor forgets it."""

    def __init__(self, graph: Any, owners: Mapping[int, Any]) -> None:
        self.launches: list[PlannedLaunch] = []
        self.allocations: list[PlannedAllocation] = []
        self.reused = 0
        copied = _copied_inputs(graph)
        self.copied = None if copied is None else len(copied)
        self.copied_bytes = None if copied is None else sum(copied)
        for line in graph.wrapper_code.lines:
            kind = type(line).__name__
            if kind == KERNEL_LINE:
                self.launches.append(_kernel(graph, line, owners.get(id(line))))
            elif kind in EXTERN_LINES:
                self.launches.append(_extern(line))
            elif kind == "AllocateLine":
                size = _bytes(line.node)
                self.allocations.append(
                    PlannedAllocation(buffer=line.node.get_name(), size_bytes=size, before=len(self.launches))
                )
            elif kind == "ReuseLine":
                self.reused += 1


def _copied_inputs(graph: Any) -> list[int] | None:
    """Bytes of each tensor on the GPU whose address may change from call to call: a CUDA graph must copy it in."""
    context = torch._guards.TracingContext.try_get()
    if context is None or context.fw_metadata is None:
        return None
    static = set(context.fw_metadata.static_input_indices)
    return [
        _bytes(value)
        for index, value in enumerate(graph.graph_inputs.values())
        if index not in static and hasattr(value, "get_device") and value.get_device().type == "cuda"
    ]


@contextlib.contextmanager
def planning(plans: list[Plan]) -> Iterator[None]:
    """Inside, compiling a graph ends with its plan in ``plans``; what Inductor returns must not be called."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    owners: dict[int, Any] = {}
    write: Callable[..., None] = PythonWrapperCodegen.writeline

    def writeline(wrapper: Any, line: Any) -> None:
        owners[id(line)] = getattr(getattr(V.graph, "scheduler", None), "current_node", None)
        write(wrapper, line)

    def stop(graph: Any, code: Any) -> Any:
        plans.append(Plan(graph, owners))
        owners.clear()
        return types.SimpleNamespace(call=_uncompiled, __file__=__file__, __name__="dry_run", runner=None)

    with (
        mock.patch.object(PythonWrapperCodegen, "writeline", writeline),
        mock.patch.object(GraphLowering, "_compile_to_module_lines", stop),
    ):
        yield


def _uncompiled(*_: Any) -> Any:
    raise RuntimeError("a dry run compiles nothing that could be called")


def _kernel(graph: Any, line: Any, owner: Any) -> PlannedLaunch:
    """A generated kernel; ``owner`` is the scheduler's (fused) node that it was generated from."""
    read, written = (None, None) if owner is None else _traffic(graph, owner)
    nodes = [] if owner is None else [node.node for node in owner.get_nodes() if node.node is not None]
    signature = list((line.triton_meta or {}).get("signature", {}))
    numels = {
        name: int(value)
        for name, value in zip(signature, line.call_args, strict=False)
        if name.endswith("numel") and str(value).isdigit()
    }
    kernel = "triton" if line.triton else "cpp"
    dtypes = [node.get_dtype() for node in nodes if node.maybe_get_dtype() is not None]
    return PlannedLaunch(
        kind="kernel",
        target=f"{kernel}:{line.kernel_name}",
        dtype=str(dtypes[-1])[6:] if dtypes else None,
        inputs=None,
        outputs=None,
        numels=numels,
        arguments=len(line.call_args),
        read_bytes=read,
        written_bytes=written,
        origins=_origins(origin for node in nodes for origin in node.origins),
    )


def _traffic(graph: Any, owner: Any) -> tuple[int, int]:
    """Bytes that a kernel reads and writes, by the index expressions of its loads and stores.

    What it makes and uses itself stays in registers.  A load through an index reads no more than one element per
    iteration, whatever the size of the table.  A dependence on a whole buffer, such as the cache that it writes a row
    of, only says what it must run after.
    """
    from torch._inductor.dependencies import StarDep

    made = {dep.name for dep in owner.read_writes.writes}
    reads = [dep for dep in owner.read_writes.reads if dep.name not in made and not isinstance(dep, StarDep)]
    writes = [dep for dep in owner.read_writes.writes if dep.name not in graph.removed_buffers]
    return sum(map(_dep_bytes(graph), reads)), sum(map(_dep_bytes(graph), writes))


def _dep_bytes(graph: Any) -> Callable[[Any], int]:
    def size(dep: Any) -> int:
        numel = int(dep.get_numel()) if hasattr(dep, "get_numel") else 0
        if getattr(dep, "is_indirect", lambda: False)():
            numel = min(numel, math.prod(int(extent) for extent in dep.size))
        return numel * int(graph.get_dtype(dep.name).itemsize) if numel else 0

    return size


def _extern(line: Any) -> PlannedLaunch:
    """A call out of the wrapper: a product, an attention, a sort."""
    node = line.node
    overload = getattr(node, "op_overload", None)
    name = str(node.get_kernel_name())
    if name.startswith("extern_kernels."):
        target = f"extern:{name.removeprefix('extern_kernels.')}"
    else:
        target = str(overload) if isinstance(overload, torch._ops.OpOverload) else name.removeprefix("torch.ops.")
    tensors = [tensor for tensor in node.inputs if hasattr(tensor, "get_size")]
    dtypes = [tensor.get_dtype() for tensor in tensors]
    main = next((dtype for dtype in dtypes if dtype.is_floating_point), dtypes[0] if dtypes else None)
    sized = node.maybe_get_size() is not None if hasattr(node, "maybe_get_size") else True
    return PlannedLaunch(
        kind="extern",
        target=target,
        dtype=None if main is None else str(main)[6:],
        inputs=_inputs(node),
        outputs=_text(node) if sized else None,
        numels={},
        arguments=None,
        read_bytes=sum(map(_bytes, tensors)),
        written_bytes=_bytes(node) if sized else None,
        origins=_origins([node.origin_node] if node.origin_node is not None else node.origins),
    )


def _inputs(node: Any) -> str:
    """The call's inputs as ``capture.signature`` writes them, in the order of the op's own arguments."""
    if hasattr(node, "unflatten_args"):
        args, kwargs = node.unflatten_args(node.inputs, node.constant_args)
    else:
        args, kwargs = (*node.inputs, *node.constant_args), node.kwargs
    flat = torch.utils._pytree.tree_leaves
    parts = [_text(leaf) for leaf in flat(args)]
    parts += [f"{name}={_text(leaf)}" for name, value in (kwargs or {}).items() for leaf in flat(value)]
    return ", ".join(parts)


def _text(value: Any) -> str:
    if not hasattr(value, "get_size"):
        return repr(value)
    shape = "x".join(str(int(size)) for size in value.get_size())
    stride = ",".join(str(int(step)) for step in value.get_stride())
    return f"{str(value.get_dtype())[6:]}[{shape}]({stride})"


def _bytes(value: Any) -> int:
    """Bytes that the buffer addresses, each element of an expanded one once."""
    sizes = zip(value.get_size(), value.get_stride(), strict=True)
    elements = math.prod(int(size) if int(stride) or not int(size) else 1 for size, stride in sizes)
    return elements * int(value.get_dtype().itemsize)


def _origins(nodes: Any) -> list[Origin]:
    """The graph nodes behind a launch in graph order, each once."""
    return [
        Origin(
            node=node.name,
            op=str(node.meta.get("original_aten") or node.target),
            source=node_source(node),
            module_path=node_module_path(node),
        )
        for node in sorted(dict.fromkeys(nodes))  # torch orders the nodes of a graph by their place in it
    ]
