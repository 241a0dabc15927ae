"""The state a step mutates, found by looking, and put back outside the timed region.

A step may write tensors in place (KV cache, buffers), replace tensors held by plain objects (DynamicCache), advance
counters and consume random numbers.  ``Snapshot`` walks everything reachable from the workload, remembers the shape of
every container and the content of every tensor that is no parameter, and ``settle`` then drops what one run of the
step proved unchanged, so that ``restore`` copies only what the step really writes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
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
    torch.Generator,
)


class Snapshot:
    """Remembers the state reachable from ``roots``.

    Raises ``CaptureError`` in ``settle`` when the step wrote a parameter: copying weights would double the memory.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._parameters: list[tuple[torch.Tensor, int | None]] = []
        self._tensors: list[tuple[torch.Tensor, int | None, torch.Tensor]] = []
        self._keep: list[Any] = []
        self.storages: set[int] = set()
        saved: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], torch.Tensor] = {}
        for value in _reachable(roots, self._keep):
            if isinstance(value, torch.Tensor):
                self._remember(value, saved)
            elif isinstance(value, dict):
                self._dicts.append((value, dict(value)))
            elif isinstance(value, list):
                self._lists.append((value, list(value)))
            elif isinstance(value, set):
                self._sets.append((value, set(value)))
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
        place = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.size()), tuple(tensor.stride()))
        if place not in saved:
            saved[place] = tensor.detach().clone()
        self._tensors.append((tensor, version, saved[place]))

    def settle(self) -> None:
        """Call once, after the step has run: forget the tensors whose version did not move."""
        for parameter, version in self._parameters:
            if version is not None and parameter._version != version:
                shape = "x".join(map(str, parameter.shape))
                raise CaptureError(f"the step writes a parameter in place (shape {shape}); review a step that does not")
        self._tensors = [
            (tensor, version, content)
            for tensor, version, content in self._tensors
            if version is None or tensor._version != version
        ]
        self._uses_rng = any(not torch.equal(a, b) for a, b in zip(self._rng, _rng_state(), strict=True))

    @property
    def written(self) -> int:
        """How many tensors ``restore`` copies back."""
        return len(self._tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back.  Untouched containers stay untouched: Dynamo's dict-version guards stay cheap."""
        for mapping, content in self._dicts:
            if len(mapping) != len(content) or any(mapping.get(k, content) is not v for k, v in content.items()):
                for key in [key for key in mapping if key not in content and not str(key).startswith("_dynamo")]:
                    del mapping[key]
                for key, value in content.items():
                    if mapping.get(key, content) is not value:
                        mapping[key] = value
        for sequence, items in self._lists:
            if len(sequence) != len(items) or any(a is not b for a, b in zip(sequence, items, strict=True)):
                sequence[:] = items
        for group, members in self._sets:
            if group != members:
                group.clear()
                group.update(members)
        for tensor, _, saved in self._tensors:
            with torch.inference_mode(tensor.is_inference()):
                tensor.copy_(saved)
        if self._uses_rng:
            _set_rng_state(self._rng)


def _reachable(roots: Iterable[Any], keep: list[Any]) -> Iterator[Any]:
    """Every tensor and container reachable from ``roots``; ``keep`` holds temporaries alive so that ids stay unique."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        value = stack.pop()
        if value is None or isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, (torch.Tensor, dict, list, set)):
            yield value
        stack.extend(_children(value))


def _children(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        scope, used = value.__globals__, value.__code__.co_names
        globals_used = [scope[name] for name in used if isinstance(scope.get(name), (torch.nn.Module, torch.Tensor))]
        return cells + list(value.__defaults__ or ()) + globals_used
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    return [vars(value)] if hasattr(value, "__dict__") else []


def _filled(cell: Any) -> bool:
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


def guarded(snapshot: Snapshot, step: Callable[[], Any]) -> Callable[[], Any]:
    """``step`` run from the remembered state; for passes that are not timed."""

    def run() -> Any:
        snapshot.restore()
        return step()

    return run


def reachable_modules(roots: Iterable[Any]) -> list[torch.nn.Module]:
    """The outermost modules reachable from ``roots`` (a bound method's owner, a module in a closure)."""
    found: list[torch.nn.Module] = []
    stack, seen = list(roots), set()
    while stack:
        value = stack.pop()
        if value is None or isinstance(value, (*_OPAQUE, torch.Tensor)) or id(value) in seen:
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
