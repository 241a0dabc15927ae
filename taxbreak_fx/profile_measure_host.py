"""The host alone: what Python's layers cost in hot loops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.recorders.bench import quiet_gc
from taxbreak_fx.replay import boxing_us

ROUNDS, CALLS = 31, 500


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
