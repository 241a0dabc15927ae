"""The state a step mutates, found by looking, and put back outside the timed region.

A step may write tensors in place (KV cache, buffers), replace tensors held by plain objects (DynamicCache), advance
counters and consume random numbers.  ``Snapshot`` walks everything reachable from the workload, remembers the shape of
every container and the content of every tensor that is no parameter, and ``settle`` then drops what one run of the
step proved unchanged, so that ``restore`` copies only what the step really writes.
"""

from __future__ import annotations

import dis
import logging
import types
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from taxbreak_fx.errors import CaptureError

_OPAQUE = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.Size,
    logging.Logger,  # leads to every logger of the process
    torch._ops.OpOverload,  # ops cache what they have looked up
    torch._ops.OpOverloadPacket,
    torch._ops._OpNamespace,
)

_TORCHS = ("_dynamo", "_torchdynamo")  # attributes that compiling adds to an object
_STATEFUL = (torch.Tensor, dict, list, deque, set, types.CellType, types.FunctionType, torch.Generator)


COPIED_BYTES = 1 << 20  # written state up to this size is copied for replays: counters and positions, not whole caches


class Snapshot:
    """Remembers the state reachable from ``roots``.

    ``storages`` are the data pointers of what replays may share with the step: weights, inputs, large caches.  A small
    tensor that the step writes is not among them, since it may be an index that repeated replays would advance.
    Raises ``CaptureError`` in ``settle`` when the step wrote a parameter: copying weights would double the memory.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        self._parameters: list[tuple[torch.Tensor, int | None]] = []
        self._tensors: list[tuple[torch.Tensor, int | None, torch.Tensor]] = []
        self._keep: list[Any] = []
        self.storages: set[int] = set()
        saved: dict[Any, torch.Tensor] = {}
        for value in _reachable(roots, self._keep):
            if isinstance(value, torch.Tensor):
                self._remember(value, saved)
            elif isinstance(value, dict):
                self._dicts.append((value, dict(value)))
            elif isinstance(value, (list, deque)):
                self._lists.append((value, list(value)))
            elif isinstance(value, set):
                self._sets.append((value, set(value)))
            elif isinstance(value, types.CellType):
                self._cells.append((value, value.cell_contents))
            elif isinstance(value, torch.Generator):
                self._generators.append((value, value.get_state()))
            elif isinstance(value, types.FunctionType):
                scope = value.__globals__
                self._globals += [(scope, name, scope[name]) for name in _stored(value.__code__) if name in scope]
        self._rng = _rng_state()
        self._uses_rng = True

    def _remember(self, tensor: torch.Tensor, saved: dict[Any, torch.Tensor]) -> None:
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            return
        self.storages.add(tensor.untyped_storage().data_ptr())
        version = None if tensor.is_inference() else tensor._version
        if isinstance(tensor, torch.nn.Parameter):
            self._parameters.append((tensor, version))
            return
        tensor = _without_repeats(tensor)
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.size()), tuple(tensor.stride()))
        if place not in saved:
            saved[place] = tensor.detach().clone()
        self._tensors.append((tensor, version, saved[place]))

    def settle(self) -> None:
        """Call once, after the step has run: forget the tensors that it did not write.

        The content counts beside the version: ``tensor.data`` and kernels of the user's own move no version.
        """
        for parameter, version in self._parameters:
            if version is not None and parameter._version != version:
                shape = "x".join(map(str, parameter.shape))
                raise CaptureError(f"the step writes a parameter in place (shape {shape}); review a step that does not")
        self._tensors = [
            (tensor, version, content)
            for tensor, version, content in self._tensors
            if (version is not None and tensor._version != version) or not _same_bytes(tensor, content)
        ]
        for tensor, _, _ in self._tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() <= COPIED_BYTES:
                self.storages.discard(storage.data_ptr())
        self._generators = [(g, state) for g, state in self._generators if not torch.equal(g.get_state(), state)]
        self._uses_rng = any(not torch.equal(a, b) for a, b in zip(self._rng, _rng_state(), strict=True))

    @property
    def written(self) -> int:
        """How many tensors ``restore`` copies back."""
        return len(self._tensors)

    @property
    def uses_rng(self) -> bool:
        """Whether the step drew random numbers (after ``settle``; until then, assumed)."""
        return self._uses_rng

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back.  Untouched containers stay untouched: Dynamo's dict-version guards stay cheap."""
        for mapping, content in self._dicts:
            if len(mapping) != len(content) or any(mapping.get(k, content) is not v for k, v in content.items()):
                for key in [key for key in mapping if key not in content and not str(key).startswith(_TORCHS)]:
                    del mapping[key]
                for key, value in content.items():
                    if mapping.get(key, content) is not value:
                        mapping[key] = value
        for sequence, items in self._lists:
            if len(sequence) != len(items) or any(a is not b for a, b in zip(sequence, items, strict=True)):
                sequence.clear()
                sequence.extend(items)
        for group, members in self._sets:
            if group != members:
                group.clear()
                group.update(members)
        for cell, content in self._cells:
            if not _filled(cell) or cell.cell_contents is not content:
                cell.cell_contents = content
        for scope, name, content in self._globals:
            if scope.get(name, scope) is not content:
                scope[name] = content
        for tensor, _, saved in self._tensors:
            with torch.inference_mode(tensor.is_inference()):
                tensor.copy_(saved)
        for generator, state in self._generators:
            generator.set_state(state)
        if self._uses_rng:
            _set_rng_state(self._rng)


def _reachable(roots: Iterable[Any], keep: list[Any]) -> Iterator[Any]:
    """Every tensor and container reachable from ``roots``; ``keep`` holds temporaries alive so that ids stay unique."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        value = stack.pop()
        if _opaque(value) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, _STATEFUL):
            yield value
        stack.extend(_children(value))


def _opaque(value: Any) -> bool:
    """Whether nothing inside ``value`` is a step's state; a Triton kernel holds its compiled code."""
    return value is None or isinstance(value, _OPAQUE) or type(value).__module__.partition(".")[0] == "triton"


def _children(value: Any) -> list[Any]:
    if isinstance(value, (torch.Tensor, torch.Generator)):
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, types.CellType):
        return [value.cell_contents] if _filled(value) else []
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell for cell in value.__closure__ or () if _filled(cell)]
        scope = value.__globals__
        used = [scope[name] for name in _used(value.__code__) if name in scope and _holds_state(scope[name], scope)]
        return [*cells, *(value.__defaults__ or ()), value.__kwdefaults__, vars(value), *used]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _holds_state(value: Any, scope: dict[str, Any]) -> bool:
    """Whether a global that a step's function uses is followed: helpers and objects of the same file, and caches."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is scope
    if isinstance(value, (torch.nn.Module, *_STATEFUL, partial, types.MethodType)):
        return True
    return type(value).__module__ in (scope.get("__name__"), "transformers.cache_utils")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """``code`` and the functions, lambdas and comprehensions written inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _used(code: types.CodeType) -> dict[str, None]:
    """The names, global ones among them, that ``code`` mentions."""
    return dict.fromkeys(name for each in _codes(code) for name in each.co_names)


def _stored(code: types.CodeType) -> set[str]:
    """The globals that ``code`` assigns."""
    return {i.argval for each in _codes(code) for i in dis.get_instructions(each) if i.opname == "STORE_GLOBAL"}


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """A view of each element once: torch refuses to copy into an expanded tensor."""
    for dim, (size, stride) in enumerate(zip(tensor.size(), tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits: NaNs included, and any dtype."""
    first, second = (
        tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8) for tensor in (a, b)
    )
    return torch.equal(first, second)


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # the language's own signal for a cell not yet assigned
        return False
    return True


def _rng_state() -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def _set_rng_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def reachable_modules(roots: Iterable[Any]) -> list[torch.nn.Module]:
    """The outermost modules reachable from ``roots`` (a bound method's owner, a module in a closure)."""
    found: list[torch.nn.Module] = []
    stack, seen = list(roots), set()
    while stack:
        value = stack.pop()
        if _opaque(value) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found.append(value)
        else:
            stack.extend(_children(value))
    return found


def tensors_of(roots: Any) -> list[torch.Tensor]:
    """Every tensor reachable from ``roots``, each once."""
    return [value for value in _reachable([roots], []) if isinstance(value, torch.Tensor)]
