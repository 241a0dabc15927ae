"""The host alone: the reference workload by which hosts are compared, and what Python's layers cost in hot loops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.recorders.bench import quiet_gc
from taxbreak_fx.replay import boxing_us

# Another workload is another version: scores of different versions say nothing about each other.
SCORE_VERSION = 1
SCORE_ROUNDS = 15
ROUNDS, CALLS = 31, 500


class _Part:
    """What the Python half of the reference workload works on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.table = {"one": (number, 2), "two": (number, number + 1)}

    def step(self, value: int, *, factor: int = 1) -> int:
        if isinstance(value, int) and value >= 0:
            self.number = (self.number * factor + value + len(self.table)) % 1_009
        return self.number


def _python_half(parts: list[_Part]) -> int:
    total = 0
    for part in parts:
        for value in range(24):
            total += part.step(value, factor=3)
        one, two = part.table["two"]
        total += sum([one, two, len(part.table)]) + len(f"{one}.{two}")
    return total


def _torch_half(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    for _ in range(6):
        y = torch.nn.functional.linear(x, w)
        y = (y + x) * 0.5
        y = y.view(2, 2, 4).transpose(0, 1).reshape(4, 4)
        y = torch.nn.functional.silu(y)
        x = torch.cat((y[:, :2], x[:, 2:]), dim=-1)
    return x


def reference_us(rounds: int = SCORE_ROUNDS) -> list[float]:
    """Microseconds of the reference workload, version ``SCORE_VERSION``, per round: fixed Python and torch CPU work.

    One thread, whatever torch is set to: the tensors have 16 elements.  32 objects with 24 method calls each, dicts,
    lists, tuples, an f-string; then 6 blocks of linear, add, mul, view, transpose, reshape, silu, slices and cat.
    """
    x, w = torch.ones(4, 4), torch.ones(4, 4)
    parts = [_Part(number) for number in range(32)]
    times = []
    with torch.no_grad(), quiet_gc():
        for number in range(rounds + 1):
            started = time.perf_counter_ns()
            _python_half(parts)
            _torch_half(x, w)
            elapsed = (time.perf_counter_ns() - started) / 1e3
            if number:  # the first warms
                times.append(elapsed)
    return times


def _plain(x: Any) -> Any:
    return x


class _Identity(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x


def python_layers(device: str, sync: Callable[[], None]) -> dict[str, float]:
    """The hot costs of ``hardware.PythonCosts``, in microseconds; each a median of differences within a round.

    ``overload_us`` is measured on ``device``; the other layers do not know it.
    """
    tensor = torch.zeros(2)
    module = _Identity().eval()

    def loop_nothing() -> None:
        for _ in range(CALLS):
            pass

    def loop_plain() -> None:
        for _ in range(CALLS):
            _plain(tensor)

    def loop_module() -> None:
        for _ in range(CALLS):
            module(tensor)

    def loop_torch() -> None:
        for _ in range(CALLS):
            torch.numel(tensor)

    def loop_view() -> None:
        for _ in range(CALLS):
            tensor.view(-1)

    loops = [loop_nothing, loop_plain, loop_module, loop_torch, loop_view]
    rows = []
    with torch.no_grad(), quiet_gc():
        for number in range(ROUNDS + 1):
            order = loops if number % 2 else loops[::-1]
            times = {loop: _timed_us(loop) / CALLS for loop in order}
            if number:
                rows.append([times[loop] for loop in loops])
    pairs = {"function_us": (1, 0), "module_us": (2, 1), "torch_us": (3, 0), "dispatch_us": (4, 3)}
    found = {name: statistics.median(row[more] - row[less] for row in rows) for name, (more, less) in pairs.items()}
    return found | {"overload_us": boxing_us(device, sync)}


def _timed_us(run: Callable[[], None]) -> float:
    started = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - started) / 1e3
