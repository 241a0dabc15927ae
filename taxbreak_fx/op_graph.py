"""The op graph of a step: its leaf ATen ops as they are dispatched, with data edges, in-place writes and source lines.

Two ways to the same records: the step as Dynamo's graphs (``captured_graph``: what a compiler is given, and where the
graphs break), and the uncompiled step (``eager_graph``: all it does, host syncs included).  Tensors are told apart by
their storages, so real and fake ones serve alike.  Recording runs the step once and times nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from taxbreak_fx.capture import EagerRecorder, OpRecorder, main_dtype, signature
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.families import classify_op
from taxbreak_fx.graph_facts import graph_info
from taxbreak_fx.op_roles import Facts, data_dependent, role_of, unsafe
from taxbreak_fx.record import SourceLine
from taxbreak_fx.sources import node_module_path, node_source
from taxbreak_fx.state import reachable_modules
from taxbreak_fx.step_graph import Break, Op, Operand, StepGraph, StepInput
from taxbreak_fx.workload import Workload

Target = Literal["cuda", "cpu"]
BETWEEN = "ops that run between Dynamo's graphs are not in this graph"


@dataclass(frozen=True)
class _Place:
    """Where the op that is dispatched now comes from."""

    source: SourceLine | None = None
    module_path: str | None = None
    graph: int = 0
    origin: str | None = None
    dynamic: bool = False


@dataclass
class _Storage:
    """What was done to one storage: the op that wrote it last, and who read it since."""

    writer: int | None = None
    input: str | None = None
    readers: list[int] = field(default_factory=list)


class _Recorder(TorchDispatchMode):
    """Turns dispatched ops into ``Op`` records; ``place`` says where each comes from."""

    def __init__(self, target: Target, roots: Sequence[Any], place: Callable[[], _Place]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.inputs: dict[str, StepInput] = {}
        self._target, self._place = target, place
        # A weak reference keeps a storage's address from being used again, but not its memory.
        self._storages: dict[StorageWeakRef, _Storage] = {}
        self._made = WeakIdKeyDictionary()
        # Weights and buffers keep their address; in an uncompiled step they are named here.
        self._held: dict[StorageWeakRef, str] = {}
        for module in reachable_modules(list(roots)):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.layout is torch.strided:
                    self._held.setdefault(StorageWeakRef(tensor.untyped_storage()), name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _tensors((args, kwargs))
        for tensor in read:
            self.storage(tensor)  # before the op can change what it is
        result = func(*args, **kwargs)
        self._add(func, args, kwargs, read, result)
        return result

    def storage(self, tensor: torch.Tensor, name: str | None = None, dynamic: bool = False) -> _Storage:
        """What is known of a tensor's storage; one never seen before is an input of the step, of that name."""
        key = _key(tensor)
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = _Storage(input=self._name(name or self._held.get(key, "input")))
            assert found.input is not None
            marked = hasattr(tensor, "_dynamo_static_input_type") or isinstance(tensor, torch.nn.Parameter)
            self.inputs[found.input] = StepInput(
                name=found.input,
                bytes=_bytes(tensor),
                device=str(tensor.device),
                static=marked or key in self._held,
                dynamic=dynamic or _sizes(tensor)[1],
            )
        return found

    def _name(self, name: str) -> str:
        taken = sum(other == name or other.startswith(f"{name}.") for other in self.inputs)
        return f"{name}.{taken}" if taken else name

    def _add(self, func: Any, args: Any, kwargs: Any, read: list[torch.Tensor], result: Any) -> None:
        made = _tensors(result)
        arguments = _arguments(func, args, kwargs)
        written = [
            tensor
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(arguments.get(argument.name))
        ]
        kind = classify_op(str(func), self._target, dtype=main_dtype(args, kwargs), inputs=signature(args, kwargs))
        if not made and not written and kind.family != "host-sync":
            return  # asks for a size or a device
        place = self._place()
        shown = made or written
        shape, dynamic = _sizes(shown[0]) if shown else ((), False)
        devices = tuple(dict.fromkeys(str(tensor.device) for tensor in [*made, *read]))
        facts = Facts(arguments, read, devices, shape, _sizes(read[0])[0] if read else None)
        loop = role_of(func, kind, facts)
        keys = {_key(tensor) for tensor in read}
        if made and not written and all(_key(tensor) in keys for tensor in made):
            loop = loop._replace(role="view", domain=(), reduced=())
            base = _key(made[0])
            read = sorted(read, key=lambda tensor: _key(tensor) != base)  # the base first
        index = len(self.ops)
        operands = self._operands(read)
        after, mutates = self._write(index, written, {operand.op for operand in operands})
        if loop.role != "view":
            for tensor in read:
                self.storage(tensor).readers.append(index)
        fresh = [tensor for tensor in made if not any(tensor is other for other in read)]
        for tensor in fresh:
            self._made[tensor] = index
            if _key(tensor) not in self._storages:
                self._storages[_key(tensor)] = _Storage(writer=index)
        self.ops.append(
            Op(
                op=str(func),
                role=loop.role,
                family=kind.family,
                library=kind.library,
                i_lib=kind.i_lib,
                shape=shape,
                dtype=str(shown[0].dtype)[6:] if shown else None,
                devices=devices,
                domain=loop.domain,
                reduced=loop.reduced,
                operands=operands,
                after=after,
                writes_in_place=bool(written),
                mutates=mutates,
                source=place.source,
                module_path=place.module_path,
                graph=place.graph,
                origin=place.origin,
                launches=0 if loop.role in ("view", "alloc") else 1,
                written_bytes=0 if loop.role == "view" else sum(map(_bytes, made or written)),
                dynamic=place.dynamic or dynamic,
                data_dependent=data_dependent(func, facts),
                unsafe=unsafe(func, kind, facts),
            )
        )

    def _operands(self, read: list[torch.Tensor]) -> tuple[Operand, ...]:
        found: list[Operand] = []
        for tensor in read:
            storage, size = self.storage(tensor), _bytes(tensor)
            maker: int | None = self._made.get(tensor)
            if storage.writer is not None and (maker is None or storage.writer > maker):
                found += [Operand(op=maker)] if maker is not None else []
                found.append(Operand(op=storage.writer, bytes=size))
            elif maker is not None:
                found.append(Operand(op=maker, bytes=size))
            else:
                found.append(Operand(input=storage.input, bytes=size))
        return tuple(dict.fromkeys(found))

    def _write(
        self, index: int, written: list[torch.Tensor], reads: set[int | None]
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Note that op ``index`` overwrites these; which ops must come before it, and which inputs it changes."""
        after: set[int] = set()
        mutates: dict[str, None] = {}
        for tensor in written:
            storage = self.storage(tensor)
            after.update(storage.readers)
            if storage.writer is not None:
                after.add(storage.writer)
            if storage.input is not None:
                mutates[storage.input] = None
            storage.writer, storage.readers = index, []
        return tuple(sorted(after - {index} - {op for op in reads if op is not None})), tuple(mutates)

    def leaves(self, outputs: Any) -> None:
        """Mark the ops whose results these outputs are: they must be written to memory."""
        for tensor in _tensors(outputs):
            self._mark(self._storages.get(_key(tensor)))

    def _mark(self, storage: _Storage | None) -> None:
        if storage is not None and storage.writer is not None:
            self.ops[storage.writer] = msgspec.structs.replace(self.ops[storage.writer], escapes=True)

    def graph(self, breaks: list[Break], notes: list[str]) -> StepGraph:
        """The finished graph; the caller still holds what the step returned.  Storages that live on have escaped."""
        gc.collect()
        for key, storage in self._storages.items():
            if not key.expired():
                self._mark(storage)
        return StepGraph(ops=self.ops, inputs=list(self.inputs.values()), breaks=breaks, notes=notes)


def captured_graph(workload: Workload, target: Target = "cuda") -> StepGraph:
    """The step as the graphs that Dynamo hands to a compiler, one after another as the step calls them.

    ``target``: the device whose libraries and kernels the ops are classified for.  Runs the step once, under no_grad,
    and leaves the state it wrote written; the caller restores it (``state.Snapshot``).  Raises ``CaptureError`` when
    Dynamo captured nothing.
    """
    place = _Place()
    recorder = _Recorder(target, _roots(workload), lambda: place)
    breaks: list[Break] = []
    calls = 0

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        info = graph_info(gm)

        def run(*args: Any) -> Any:
            nonlocal calls, place
            graph, calls = calls, calls + 1

            class Placed(torch.fx.Interpreter):
                def run_node(self, node: torch.fx.Node) -> Any:
                    nonlocal place
                    place = _Place(node_source(node), node_module_path(node), graph, node.name, _symbolic(node))
                    return super().run_node(node)

            holders = [node for node in gm.graph.nodes if node.op == "placeholder"]
            for node, value in zip(holders, args, strict=True):
                if isinstance(value, torch.Tensor):
                    recorder.storage(value, node.name, _symbolic(node))
            with recorder:
                outputs = Placed(gm, garbage_collect_values=True).run(*args)
            recorder.leaves(outputs)
            if info.break_reason is not None:
                breaks.append(Break(graph=graph, reason=info.break_reason, source=info.source))
            return outputs

        return run

    with torch.no_grad():
        result = torch.compile(workload.call, backend=backend)(*workload.args, **workload.kwargs)
    if not calls:
        raise CaptureError(f"Dynamo captured no graph of {workload.model}; use the uncompiled step (eager_graph)")
    graph = recorder.graph(breaks, [BETWEEN] if calls > 1 else [])
    del result
    return graph


def eager_graph(workload: Workload, target: Target = "cuda") -> StepGraph:
    """The uncompiled step with all it dispatches, host syncs and data-dependent ops included; no origins.

    Runs the step once, under no_grad, and leaves the state it wrote written; the caller restores it.
    """
    roots = _roots(workload)
    sites = OpRecorder()
    watch = EagerRecorder(sites, roots)

    def place() -> _Place:
        label = sites.current.label if sites.current is not None else None
        return _Place() if label is None else _Place(label.source, label.module_path)

    recorder = _Recorder(target, roots, place)
    with torch.no_grad(), watch.watching_modules(), watch, sites, recorder:
        result = workload.run()
    graph = recorder.graph([], [])
    del result
    return graph


def _roots(workload: Workload) -> list[Any]:
    return [workload.call, workload.args, dict(workload.kwargs), *workload.state]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _key(tensor: torch.Tensor) -> StorageWeakRef:
    if tensor.layout is not torch.strided:
        raise CaptureError(
            f"a tensor of layout {tensor.layout} has no storage to follow; only strided ones are graphed"
        )
    return StorageWeakRef(tensor.untyped_storage())


def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _sizes(tensor: torch.Tensor) -> tuple[tuple[int, ...] | None, bool]:
    """The tensor's sizes, or None where they hang on the data; and whether they vary."""
    sizes: list[int] = []
    shape: Sequence[Any] = tensor.shape  # symbolic sizes are no int
    for size in shape:
        hint = size if isinstance(size, int) else size.node.hint
        if hint is None:
            return None, True
        sizes.append(int(hint))
    return tuple(sizes), any(not isinstance(size, int) for size in shape)


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements that a tensor really holds: an expanded dimension counts once."""
    sizes, _ = _sizes(tensor)
    if sizes is None:
        return 0
    count = 1
    for size, stride in zip(sizes, tensor.stride(), strict=True):
        count *= 1 if isinstance(stride, int) and stride == 0 and size else size
    return count * tensor.element_size()


def _symbolic(node: torch.fx.Node) -> bool:
    """Whether Dynamo compiled this node for varying sizes."""
    return any(_sizes(tensor)[1] for tensor in _tensors(node.meta.get("example_value")))
