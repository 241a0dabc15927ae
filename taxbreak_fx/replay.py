"""Isolated replay of captured calls: hot-loop host times, un-instrumented, and the smallest valid shape of an op.

Every unique call is repeated in process with its real tensors; what it writes in place is put back between rounds,
outside the clock.  A call that fails is an entry with its reason, never a silent floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_flatten, tree_map

from taxbreak_fx.capture import CapturedCall
from taxbreak_fx.recording import Replay

IN_PLACE = ("__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or", "xor")))
CALLS_PER_ROUND = 20  # between two syncs: far below the launch queue's depth of about 1,024
ROUNDS = 5
BOXING_ROUNDS = 30
SLOW_CALL_US = 5_000.0


def _nothing() -> None:
    pass


def replay_all(calls: Iterable[CapturedCall], level: Literal["call", "leaf"], sync: Callable[[], None]) -> list[Replay]:
    """Replay every call and return one entry each; ``host_us`` is the median over rounds of the mean per call."""
    held = list(calls)
    boxing = boxing_us(_device(held), sync) if level == "leaf" and held else None
    return [_replay(call, call, level, sync, boxing) for call in held]


def replay_smallest(calls: Iterable[CapturedCall]) -> list[Replay]:
    """Replay every leaf op with every dimension shrunk to 1: what it costs when there is nothing to compute (CPU)."""
    return [_replay(call, smallest(call), "smallest", lambda: None) for call in calls]


class Writes:
    """The tensors that a call writes in place, as they were: contents, sizes, strides and offsets."""

    def __init__(self, call: CapturedCall) -> None:
        self._saved = [(t, t.size(), t.stride(), t.storage_offset(), t.detach().clone()) for t in written(call)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for tensor, size, stride, offset, content in self._saved:
            if (tensor.size(), tensor.stride(), tensor.storage_offset()) != (size, stride, offset):
                tensor.as_strided_(size, stride, offset)
            tensor.copy_(content)


def written(call: CapturedCall) -> list[torch.Tensor]:
    """The tensors that ``call`` may write: by its schema, else by the names that in-place functions have in torch."""
    schema = getattr(call.function, "_schema", None)
    if schema is not None:
        names = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
        order = {argument.name: place for place, argument in enumerate(schema.arguments)}
        values = [call.args[order[n]] if order[n] < len(call.args) else call.kwargs.get(n) for n in names]
    else:
        name = str(getattr(call.function, "__name__", ""))
        first = name in IN_PLACE or (name.endswith("_") and not name.endswith("__")) or call.kwargs.get("inplace")
        values = [*(call.args[:1] if first else ()), call.kwargs.get("out")]
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, torch.Tensor) and _plain(leaf)]


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not any(
        stride == 0 and size > 1 for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
    )


@torch.no_grad()
def boxing_us(device: str, sync: Callable[[], None]) -> float:
    """What a call through an ``OpOverload`` from Python costs above the torch function of the same op; microseconds.

    The median over cheap ops of the median difference of interleaved rounds, with operands so small that both do
    nothing else but dispatch.  A replayed leaf costs this more than the same op called by ATen itself, so its
    T_dispatch is ``host_us − boxing_us`` − launch; in ΔCT, a difference of two leaves, it cancels.
    """
    x, y = torch.ones(8, 8, device=device), torch.ones(8, 8, device=device)
    aten = torch.ops.aten
    pairs: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = [
        (aten.add.Tensor, torch.add, (x, y)),
        (aten.mul.Tensor, torch.mul, (x, y)),
        (aten.neg.default, torch.neg, (x,)),
        (aten.relu.default, torch.relu, (x,)),
        (aten.exp.default, torch.exp, (x,)),
        (aten.mm.default, torch.mm, (x, y)),
        (aten.unsqueeze.default, torch.unsqueeze, (x, 0)),
    ]
    return statistics.median(_dearer_us(overload, own, args, sync) for overload, own, args in pairs)


def _dearer_us(
    overload: Callable[..., Any], own: Callable[..., Any], args: tuple[Any, ...], sync: Callable[[], None]
) -> float:
    """Median over interleaved rounds of how much longer a call of ``overload`` takes than one of ``own``."""
    differences = []
    for number in range(BOXING_ROUNDS + 1):
        sync()
        times = {}
        for function in (overload, own) if number % 2 else (own, overload):
            started = time.perf_counter_ns()
            for _ in range(CALLS_PER_ROUND):
                function(*args)
            times[function] = (time.perf_counter_ns() - started) / 1e3 / CALLS_PER_ROUND
        if number:  # the first round warms both
            differences.append(times[overload] - times[own])
    sync()
    return statistics.median(differences)


def _replay(
    call: CapturedCall,
    run: Callable[[], Any],
    level: Literal["call", "leaf", "smallest"],
    sync: Callable[[], None],
    boxing: float | None = None,
) -> Replay:
    try:
        host_us = hot_us(run, sync, _nothing if level == "smallest" else Writes(call).restore)
    except Exception as error:  # any op may refuse any replay: the entry carries the reason
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        return Replay(key=call.key, level=level, op=call.op, dtype=call.dtype, host_us=None, failure=reason)
    tensors = tensors_of(call.function, call.args, call.kwargs)
    return Replay(
        key=call.key, level=level, op=call.op, dtype=call.dtype, host_us=host_us, boxing_us=boxing, tensors=tensors
    )


def tensors_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many tensors a call takes, and returns by its schema (one where it has none)."""
    taken = sum(isinstance(leaf, torch.Tensor) for leaf in tree_flatten((args, kwargs))[0])
    schema = getattr(function, "_schema", None)
    return taken + (sum("Tensor" in str(result.type) for result in schema.returns) if schema is not None else 1)


def _device(calls: Iterable[CapturedCall]) -> str:
    """``cuda`` as soon as one tensor of the calls is there, else ``cpu``."""
    leaves = (leaf for call in calls for leaf in tree_flatten((call.args, call.kwargs))[0])
    return "cuda" if any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in leaves) else "cpu"


@torch.no_grad()
def hot_us(run: Callable[[], Any], sync: Callable[[], None], restore: Callable[[], None] = _nothing) -> float:
    """Host microseconds per call of ``run`` in a hot loop, device idle before each round, waits not included.

    ``restore`` puts back before each round, and at the end, what ``run`` writes.
    """
    run()
    sync()
    started = time.perf_counter_ns()
    run()
    first = (time.perf_counter_ns() - started) / 1e3
    sync()
    calls, rounds = (2, 3) if first > SLOW_CALL_US else (CALLS_PER_ROUND, ROUNDS)
    times = []
    for _ in range(rounds):
        restore()
        sync()
        started = time.perf_counter_ns()
        for _ in range(calls):
            run()
        times.append((time.perf_counter_ns() - started) / 1e3 / calls)
    restore()
    sync()
    return statistics.median(times)


def smallest(call: CapturedCall) -> Callable[[], Any]:
    """``call`` with every tensor dimension shrunk to 1, integer tensors zeroed, and size lists likewise.

    The result may be invalid for some ops; running it then raises torch's own error, which the caller records.
    """
    shapes: set[tuple[int, ...]] = set()

    def note(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            shapes.update(tuple(value.shape[i:]) for i in range(value.dim()))
        return value

    def shrink(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        ones = [1] * value.dim()
        if value.is_floating_point() or value.is_complex():
            return torch.ones(ones, dtype=value.dtype, device=value.device)
        return torch.zeros(ones, dtype=value.dtype, device=value.device)

    def shrink_sizes(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
            return [1] * len(value) if tuple(value) in shapes or "shape" in sizes or "size" in sizes else value
        return value

    tree_map(note, (call.args, call.kwargs))
    schema = getattr(call.function, "_schema", None)
    sizes = {argument.name for argument in schema.arguments} if schema is not None else set()
    args = [shrink_sizes(tree_map(shrink, arg)) for arg in call.args]
    kwargs = {name: tree_map(shrink, arg) for name, arg in call.kwargs.items()}
    return lambda: call.function(*args, **kwargs)
