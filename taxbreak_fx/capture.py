"""What a step runs: its calls in issue order with source lines, the ATen ops under each, and their real arguments.

Recording slows the step about threefold, so nothing is ever timed under it.  Arguments are kept for one call per
unique signature; every storage is copied once, so that aliasing, offsets and strides survive, while weights and other
state that outlives the step are shared, not copied.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_flatten, tree_map_only

from taxbreak_fx.errors import CaptureError, MeasurementError
from taxbreak_fx.observe import Label, qualified_name
from taxbreak_fx.sources import frame_source, module_names
from taxbreak_fx.state import reachable_modules
from taxbreak_fx.ticks import Spot, Ticks, call_spots


@dataclass
class CapturedCall:
    """A call with real arguments: ``function(*args, **kwargs)`` may be repeated; ``op`` is what it is classified by."""

    key: str
    op: str
    dtype: str | None
    function: Callable[..., Any]
    args: Any
    kwargs: Any

    def __call__(self) -> Any:
        return self.function(*self.args, **self.kwargs)


class Witness(Protocol):
    """Sees the arguments of every captured call just before it runs, and what came of it just after."""

    def before(self, level: Literal["call", "leaf"], key: str, args: Any, kwargs: Any) -> None:
        """The call is about to run."""

    def after(self, level: Literal["call", "leaf"], key: str, result: Any) -> None:
        """It has run."""


@dataclass
class RecordedSite:
    """One site as recorded: its label, the ops dispatched under it, and the keys of its captured leaf calls."""

    label: Label
    ops: list[str] = field(default_factory=list)
    leaf_keys: list[str] = field(default_factory=list)
    dtype: str | None = None
    call_key: str | None = None
    stack: list[Spot] = field(default_factory=list)


RESERVE = 0.2  # of the device's memory, by convention: for the step, workspaces of libraries, a twin's graphs
_PLAIN = (int, float, bool, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)


def signature(args: Any, kwargs: Any) -> str:
    """Shapes, strides, dtypes and scalars of a call, as one stable string, which ``family_inputs`` reads back.

    Options carry their names, since ``addmm``'s beta and alpha are both numbers; a tensor that wraps others its class.
    """
    parts = [_text(leaf) for leaf in tree_flatten(args)[0]]
    parts += [f"{name}={_text(leaf)}" for name, value in kwargs.items() for leaf in tree_flatten(value)[0]]
    return ", ".join(parts)


def _text(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        shape = "x".join(map(str, leaf.shape))
        stride = ",".join(map(str, leaf.stride())) if leaf.layout is torch.strided else str(leaf.layout)
        plain = type(leaf) in (torch.Tensor, torch.nn.Parameter) or not is_traceable_wrapper_subclass(leaf)
        return f"{str(leaf.dtype)[6:]}[{shape}]({stride})" + ("" if plain else f":{type(leaf).__name__}")
    if isinstance(leaf, _PLAIN) or (
        isinstance(leaf, slice) and all(isinstance(end, _PLAIN) for end in (leaf.start, leaf.stop, leaf.step))
    ):
        return repr(leaf)
    return type(leaf).__name__


def main_dtype(args: Any, kwargs: Any) -> str | None:
    """The dtype of the first floating-point tensor argument, else of the first tensor, else None."""
    dtypes = [leaf.dtype for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    chosen = next((dtype for dtype in dtypes if dtype.is_floating_point), dtypes[0] if dtypes else None)
    return str(chosen)[6:] if chosen is not None else None


def freeze(args: Any, kwargs: Any, shared: set[int]) -> tuple[Any, Any]:
    """The arguments with every storage copied once, but for those whose data pointer is in ``shared``.

    ``requires_grad`` is kept: matmul folds its operands by it, also under no_grad, and then runs other kernels.
    Raises ``NoRoom`` where a copy would leave the device too little memory for the step itself.
    """
    copies: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() in shared:
            return like(tensor.detach(), tensor)
        if storage._cdata not in copies:
            if not room_for(storage):
                raise NoRoom
            copies[storage._cdata] = storage.clone()
        copied = copies[storage._cdata]
        frozen = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        frozen.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())
        return like(frozen, tensor)

    def like(frozen: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        return frozen.requires_grad_() if tensor.requires_grad and not frozen.is_inference() else frozen

    with torch.no_grad(), _disable_current_modes():
        frozen: tuple[Any, Any] = tree_map_only(torch.Tensor, keep, (args, kwargs))
    return frozen


class NoRoom(Exception):
    """The arguments of a call are not kept: it cannot be replayed."""


def room_for(storage: torch.UntypedStorage) -> bool:
    """Whether a copy leaves ``RESERVE`` of the device's memory free; on the CPU always.

    A loop over experts has thousands of unique calls: the number of tokens differs from expert to expert.
    """
    if storage.device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(storage.device)
    cached = torch.cuda.memory_reserved(storage.device) - torch.cuda.memory_allocated(storage.device)
    return free + cached - storage.nbytes() >= RESERVE * total


def not_kept(*args: Any, **kwargs: Any) -> Any:
    """Stands for a call without arguments.  Raises ``MeasurementError``: the reason of its replays."""
    raise MeasurementError("its arguments were not kept: with all of them the device's memory would be full")


def functional(func: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The overload that allocates its result, for an ``out`` overload of Inductor's; any other op as it is.

    T_dispatch is compared with that of native ops, and those allocate: so must the library op beside them.
    """
    default = getattr(func.overloadpacket, "default", None) if func._overloadname == "out" else None
    if default is None or "out" not in kwargs:
        return func, kwargs
    wanted, offered = (
        [(a.name, str(a.type)) for a in each._schema.arguments if a.name != "out"] for each in (func, default)
    )
    if wanted != offered:  # aten.mul.default, for one, multiplies two numbers
        return func, kwargs
    return default, {name: value for name, value in kwargs.items() if name != "out"}


class OpRecorder(TorchDispatchMode):
    """Records the ATen ops dispatched under the current site and, given ``calls``, captures each unique one."""

    def __init__(
        self,
        calls: dict[str, CapturedCall] | None = None,
        shared: set[int] | None = None,
        witness: Witness | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites: list[RecordedSite] = []
        self.stray: list[str] = []
        self.current: RecordedSite | None = None
        self._calls, self._shared, self._witness = calls, shared or set(), witness

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        site = self.current
        if site is None:
            self.stray.append(name)
            return func(*args, **kwargs)
        site.ops.append(name)
        site.dtype = site.dtype or main_dtype(args, kwargs)
        if self._calls is not None:
            key = f"{name}({signature(args, kwargs)})"
            site.leaf_keys.append(key)
            if key not in self._calls:
                replayed, options = functional(func, kwargs)
                try:
                    frozen = freeze(args, options, self._shared)
                except NoRoom:
                    replayed, frozen = not_kept, ((), {})
                self._calls[key] = CapturedCall(key, name, main_dtype(args, kwargs), replayed, *frozen)
                if self._witness is not None:
                    self._witness.before("leaf", key, args, options)
                    result = func(*args, **kwargs)
                    self._witness.after("leaf", key, result)
                    return result
        return func(*args, **kwargs)

    def begin(self, label: Label) -> None:
        """The ops that follow belong to a new site."""
        self.current = RecordedSite(label)
        self.sites.append(self.current)

    def end(self) -> None:
        """The ops that follow belong to no site."""
        self.current = None


class RecordProbe:
    """Tells an ``OpRecorder`` where sites begin and end; the labels come from the mechanism that calls the probe."""

    def __init__(self, recorder: OpRecorder, labels: list[Label]) -> None:
        self._recorder, self._labels = recorder, labels

    def enter(self) -> None:
        """Begin the site whose label was added last."""
        self._recorder.begin(self._labels[len(self._recorder.sites)])

    def leave(self) -> None:
        """End it."""
        self._recorder.end()


class EagerRecorder(TorchFunctionMode):
    """Sites of the uncompiled step with source line, module path and, given ``calls``, each unique call captured."""

    def __init__(
        self,
        ops: OpRecorder,
        roots: list[Any],
        calls: dict[str, CapturedCall] | None = None,
        shared: set[int] | None = None,
        witness: Witness | None = None,
    ) -> None:
        super().__init__()
        self._ops, self._calls, self._shared, self._witness = ops, calls, shared or set(), witness
        self._names = module_names(reachable_modules(roots))
        self._stack: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = frame_source(sys._getframe(1))
        label = Label(qualified_name(func), source, self._stack[-1] if self._stack else None)
        key = f"{label.target}({signature(args, kwargs)})"
        fresh = self._calls is not None and key not in self._calls and getattr(func, "__name__", "") != "__get__"
        function, frozen = func, None
        if fresh:
            try:
                frozen = freeze(args, kwargs, self._shared)
            except NoRoom:
                function, frozen = not_kept, ((), {})
        self._ops.begin(label)
        if self._calls is None:
            self._ops.sites[-1].stack = call_spots(sys._getframe(1))
        if fresh and self._witness is not None:
            self._witness.before("call", key, args, kwargs)
        try:
            result = func(*args, **kwargs)
        finally:  # the author may catch what a call raises
            site = self._ops.sites[-1]
            self._ops.end()
        if site.ops:
            site.dtype = main_dtype(args, kwargs) or site.dtype
            if self._calls is not None and frozen is not None:
                op = "+".join(site.ops)
                self._calls[key] = CapturedCall(key, op, site.dtype, function, *frozen)
                if self._witness is not None:
                    self._witness.after("call", key, result)
            if self._calls is not None and key in self._calls:
                site.call_key = key
        return result

    @contextlib.contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Keep the path of the module being called, by torch's global forward hooks."""
        hooks = torch.nn.modules.module

        def push(module: torch.nn.Module, args: Any) -> None:
            self._stack.append(self._names.get(id(module), type(module).__name__))

        def pop(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [
            hooks.register_module_forward_pre_hook(push),
            hooks.register_module_forward_hook(pop, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def record_eager(
    step: Callable[[], Any],
    roots: list[Any],
    shared: set[int],
    inference: bool,
    calls: dict[str, CapturedCall] | None = None,
    leaves: dict[str, CapturedCall] | None = None,
    ticks: Ticks | None = None,
    witness: Witness | None = None,
) -> OpRecorder:
    """Run the uncompiled step once and return its sites: its torch calls or, given ``ticks``, what each of them holds.

    Under ``inference`` the ops seen are the composite, top-level ones (``aten.linear``); otherwise, under no_grad,
    the leaf ones (``aten.addmm``).  ``calls`` and ``leaves`` receive the captured unique calls, each of which
    ``witness`` sees run.
    """
    ops = OpRecorder(leaves, shared, witness)
    eager = EagerRecorder(ops, roots, calls, shared, witness)
    gather = _Gather(ops)
    grad = torch.inference_mode() if inference else torch.no_grad()
    ticking = contextlib.nullcontext() if ticks is None else ticks.installed(gather)
    with ticking, grad, eager.watching_modules(), eager, ops:
        step()
    if ticks is not None:
        ops.sites = gathered(ops, gather.edges)
    return ops


def find_ticks(step: Callable[[], Any], roots: list[Any]) -> Ticks:
    """Where the uncompiled step calls torch functions that dispatch ops.  Raises ``CaptureError`` as ``Ticks`` does."""
    found = record_eager(step, roots, set(), True)
    return Ticks(site.stack for site in found.sites if site.ops)


class _Gather:
    """Where the sites of a recorder begin and end, by number: what was recorded inside one tick is one site."""

    def __init__(self, recorder: OpRecorder) -> None:
        self._sites = recorder.sites
        self.edges: list[int] = []

    def enter(self) -> None:
        self.edges.append(len(self._sites))

    leave = enter


def gathered(recorder: OpRecorder, edges: list[int]) -> list[RecordedSite]:
    """One site per tick: the first of its torch calls that dispatched ops gives the name, all of them the ops.

    Raises ``CaptureError`` when a call that dispatches ops lies in no tick.
    """
    ticked = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        calls = recorder.sites[start:stop]
        busy = [call for call in calls if call.ops]
        first = (busy or calls or [RecordedSite(Label("python"))])[0]
        ticked.append(
            RecordedSite(
                label=first.label,
                ops=[op for call in busy for op in call.ops],
                leaf_keys=[key for call in busy for key in call.leaf_keys],
                dtype=first.dtype,
                call_key=first.call_key if len(busy) == 1 else None,
            )
        )
    if sum(len(site.ops) for site in ticked) != sum(len(site.ops) for site in recorder.sites):
        raise CaptureError("a torch call that was not met before dispatches ops: the step's work depends on data")
    return ticked
