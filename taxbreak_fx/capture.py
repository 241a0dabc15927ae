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
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only

from taxbreak_fx.observe import Label, qualified_name
from taxbreak_fx.sources import frame_source, module_names
from taxbreak_fx.state import reachable_modules


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


@dataclass
class RecordedSite:
    """One site as recorded: its label, the ops dispatched under it, and the keys of its captured leaf calls."""

    label: Label
    ops: list[str] = field(default_factory=list)
    leaf_keys: list[str] = field(default_factory=list)
    dtype: str | None = None
    call_key: str | None = None


def signature(args: Any, kwargs: Any) -> str:
    """Shapes, strides, dtypes and scalars of a call, as one stable string."""
    parts = []
    for leaf in tree_flatten((args, kwargs))[0]:
        if isinstance(leaf, torch.Tensor):
            shape = "x".join(map(str, leaf.shape))
            stride = ",".join(map(str, leaf.stride())) if leaf.layout is torch.strided else str(leaf.layout)
            parts.append(f"{str(leaf.dtype)[6:]}[{shape}]({stride})")
        elif isinstance(leaf, (int, float, bool, str, type(None), torch.dtype, torch.device)):
            parts.append(repr(leaf))
        else:
            parts.append(type(leaf).__name__)
    return ", ".join(parts)


def main_dtype(args: Any, kwargs: Any) -> str | None:
    """The dtype of the first floating-point tensor argument, else of the first tensor, else None."""
    dtypes = [leaf.dtype for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    chosen = next((dtype for dtype in dtypes if dtype.is_floating_point), dtypes[0] if dtypes else None)
    return str(chosen)[6:] if chosen is not None else None


def freeze(args: Any, kwargs: Any, shared: set[int]) -> tuple[Any, Any]:
    """The arguments with every storage copied once, but for those whose data pointer is in ``shared``."""
    copies: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() in shared:
            return tensor.detach()
        copied = copies.setdefault(storage._cdata, storage.clone() if storage._cdata not in copies else storage)
        frozen = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return frozen.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())

    with torch.no_grad(), _disable_current_modes():
        frozen: tuple[Any, Any] = tree_map_only(torch.Tensor, keep, (args, kwargs))
    return frozen


def functional(func: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The overload that allocates its result, for an ``out`` overload of Inductor's; any other op as it is.

    T_dispatch is compared with that of native ops, and those allocate: so must the library op beside them.
    """
    default = getattr(func.overloadpacket, "default", None) if func._overloadname == "out" else None
    if default is None or "out" not in kwargs or len(default._schema.arguments) != len(func._schema.arguments) - 1:
        return func, kwargs
    return default, {name: value for name, value in kwargs.items() if name != "out"}


class OpRecorder(TorchDispatchMode):
    """Records the ATen ops dispatched under the current site and, given ``calls``, captures each unique one."""

    def __init__(self, calls: dict[str, CapturedCall] | None = None, shared: set[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sites: list[RecordedSite] = []
        self.stray: list[str] = []
        self.current: RecordedSite | None = None
        self._calls, self._shared = calls, shared or set()

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
                frozen = freeze(args, options, self._shared)
                self._calls[key] = CapturedCall(key, name, main_dtype(args, kwargs), replayed, *frozen)
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
    ) -> None:
        super().__init__()
        self._ops, self._calls, self._shared = ops, calls, shared or set()
        self._names = module_names(reachable_modules(roots))
        self._stack: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = frame_source(sys._getframe(1))
        label = Label(qualified_name(func), source, self._stack[-1] if self._stack else None)
        key = f"{label.target}({signature(args, kwargs)})"
        fresh = self._calls is not None and key not in self._calls and getattr(func, "__name__", "") != "__get__"
        frozen = freeze(args, kwargs, self._shared) if fresh else None
        self._ops.begin(label)
        try:
            result = func(*args, **kwargs)
        finally:  # the author may catch what a call raises
            site = self._ops.sites[-1]
            self._ops.end()
        if site.ops:
            site.dtype = main_dtype(args, kwargs) or site.dtype
            if self._calls is not None and frozen is not None:
                op = "+".join(site.ops)
                self._calls[key] = CapturedCall(key, op, site.dtype, func, *frozen)
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
) -> OpRecorder:
    """Run the uncompiled step once and return its sites.

    Under ``inference`` the ops seen are the composite, top-level ones (``aten.linear``); otherwise, under no_grad,
    the leaf ones (``aten.addmm``).  ``calls`` and ``leaves`` receive the captured unique calls.
    """
    ops = OpRecorder(leaves, shared)
    eager = EagerRecorder(ops, roots, calls, shared)
    grad = torch.inference_mode() if inference else torch.no_grad()
    with grad, eager.watching_modules(), eager, ops:
        step()
    return ops
