"""The reference workload by which hosts are compared: fixed Python and torch CPU work on one thread.

Another workload is another ``SCORE_VERSION`` (machine.py): scores of different versions say nothing about each other.
"""

from __future__ import annotations

import gc
import time

import torch

SCORE_ROUNDS = 15


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
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.no_grad():
            for number in range(rounds + 1):
                started = time.perf_counter_ns()
                _python_half(parts)
                _torch_half(x, w)
                elapsed = (time.perf_counter_ns() - started) / 1e3
                if number:  # the first warms
                    times.append(elapsed)
    finally:
        if collecting:
            gc.enable()
    return times
