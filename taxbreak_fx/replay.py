"""Isolated replay of captured calls: hot-loop host times, un-instrumented, and the smallest valid shape of an op.

Every unique call is repeated in process with its real tensors.  A call that fails is an entry with its reason, never a
silent floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_map

from taxbreak_fx.capture import CapturedCall
from taxbreak_fx.recording import Replay

CALLS_PER_ROUND = 20  # between two syncs: far below the launch queue's depth of about 1,024
ROUNDS = 5
SLOW_CALL_US = 5_000.0


def replay_all(calls: Iterable[CapturedCall], level: Literal["call", "leaf"], sync: Callable[[], None]) -> list[Replay]:
    """Replay every call and return one entry each; ``host_us`` is the median over rounds of the mean per call."""
    return [_replay(call, call, level, sync) for call in calls]


def replay_smallest(calls: Iterable[CapturedCall]) -> list[Replay]:
    """Replay every leaf op with every dimension shrunk to 1: what it costs when there is nothing to compute (CPU)."""
    return [_replay(call, smallest(call), "smallest", lambda: None) for call in calls]


def _replay(
    call: CapturedCall, run: Callable[[], Any], level: Literal["call", "leaf", "smallest"], sync: Callable[[], None]
) -> Replay:
    try:
        host_us = hot_us(run, sync)
    except Exception as error:  # any op may refuse any replay: the entry carries the reason
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        return Replay(key=call.key, level=level, op=call.op, dtype=call.dtype, host_us=None, failure=reason)
    return Replay(key=call.key, level=level, op=call.op, dtype=call.dtype, host_us=host_us)


@torch.no_grad()
def hot_us(run: Callable[[], Any], sync: Callable[[], None]) -> float:
    """Host microseconds per call of ``run`` in a hot loop, device idle before each round, waits not included."""
    run()
    sync()
    started = time.perf_counter_ns()
    run()
    first = (time.perf_counter_ns() - started) / 1e3
    sync()
    calls, rounds = (2, 3) if first > SLOW_CALL_US else (CALLS_PER_ROUND, ROUNDS)
    times = []
    for _ in range(rounds):
        sync()
        started = time.perf_counter_ns()
        for _ in range(calls):
            run()
        times.append((time.perf_counter_ns() - started) / 1e3 / calls)
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
