"""What two generated clock reads cost around a call, and what calls in their place do, measured on a known program.

A tight loop understates it: between the calls of a real step, caches forget the clock's code.  So the reads are timed
in a program of mixed torch calls, with and without them, in turns and between the steps that are clocked.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from taxbreak_fx.capture import find_ticks
from taxbreak_fx.probes import ClockProbe, CountProbe, DrainProbe, inline_cost_us
from taxbreak_fx.ticks import Ticks

ROUTED_PAIRS = 150
_REPEATS = 12
# Compiled under a name of its own: call sites inside this package are not looked for.
_CALLS = """
    b = F.linear(a, w)
    c = b + a
    c = c * 0.5
    d = F.layer_norm(c, (64,))
    e = torch.cat((d, c), dim=-1)
    f = e[..., :64].contiguous()
    g = f.view(8, 8, 8).transpose(0, 1)
    h = g.reshape(8, 64)
    i = F.silu(h)
    j = torch.softmax(i, dim=-1)
    k = j.mean(dim=-1, keepdim=True)
    a = a - k
"""


class TickCost:
    """What observing one site by ticks adds on ``device``, sampled beside the steps that are clocked.

    Measured once per process it held for that moment only: hosts run at one of two speeds for seconds on end (H200,
    2026-11-24: 0.44 to 0.97 µs in six processes, whose steps then took 0.30 to 0.85 per site).
    """

    def __init__(self, device: str) -> None:
        self._program = _program(device)
        self._plain: list[float] = []
        self._clocked: list[float] = []

    def plain(self) -> None:
        """Run the mixed program as it is."""
        self._plain.append(self._run())

    def clocked(self) -> None:
        """Run it with its sites clocked."""
        with self._program.ticks.installed(ClockProbe()):
            self._clocked.append(self._run())

    def cost_us(self) -> tuple[float, float]:
        """(inside the site, outside it), in microseconds, at the middle speed of the samples.

        The sum is measured in the mixed program; it is split as the same reads split in a tight loop.
        """
        inside, outside = inline_cost_us()
        added = statistics.median(own / plain - 1 for plain, own in zip(self._plain, self._clocked, strict=True))
        each = added * statistics.median(self._plain) / self._program.sites
        # On a busy machine the difference of two programs may drown; a tight loop is the least that the reads can cost.
        scale = max(1.0, each / (inside + outside))
        return inside * scale, outside * scale

    def _run(self) -> float:
        self._program.sync()
        with torch.no_grad():
            started = time.perf_counter_ns()
            self._program.step()
            return (time.perf_counter_ns() - started) / 1e3


@functools.cache
def routing_cost_us(device: str) -> float:
    """What a site holds more when its ticks call a ``DrainProbe`` than when a ``ClockProbe`` reads in the code.

    Microseconds per site on ``device``, measured in the mixed program with nothing to drain: the way back from the
    call before the site, and the way to the one after it.
    """
    program = _program(device)

    def site_us(probe: ClockProbe | DrainProbe) -> float:
        program.sync()
        with program.ticks.installed(probe):
            program.step()
        return statistics.fmean(probe.split())

    with torch.no_grad():
        differences = []
        for _ in range(ROUTED_PAIRS):
            clocked = site_us(ClockProbe())
            differences.append(site_us(DrainProbe(_nothing)) - clocked)
    program.sync()
    return statistics.median(differences)


@dataclass(frozen=True)
class _Program:
    """The mixed program, its ticks, and how many sites they make."""

    step: Callable[[], Any]
    ticks: Ticks
    sites: int
    sync: Callable[[], None]


@functools.cache
def _program(device: str) -> _Program:
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    source = f"def program(a, w):{_CALLS * _REPEATS}    return a\n"
    exec(compile(source, "<calibration of the clock>", "exec"), names)
    program = names["program"]
    a, w = torch.ones(8, 64, device=device), torch.ones(64, 64, device=device)

    def step() -> Any:
        return program(a, w)

    with torch.no_grad():
        ticks, count = find_ticks(step, []), CountProbe()
        with ticks.installed(count):
            step()
    return _Program(step, ticks, count.count, torch.cuda.synchronize if device == "cuda" else _nothing)


def _nothing() -> None:
    pass
