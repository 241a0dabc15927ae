"""What two generated clock reads cost around a call, and what calls in their place do, measured on a known program.

A tight loop understates it: between the calls of a real step, caches forget the clock's code.  So the reads are timed
in a program of mixed torch calls, with and without them, in turns.
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

BLOCKS, STEPS = 12, 4
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


@functools.cache
def tick_cost_us(device: str) -> tuple[float, float]:
    """What observing one site by ticks adds, in microseconds: (inside the site, outside it), on ``device``.

    The sum is measured in the mixed program; it is split as the same reads split in a tight loop.
    """
    program = _program(device)

    def plain() -> float:
        program.sync()
        started = time.perf_counter_ns()
        program.step()
        return (time.perf_counter_ns() - started) / 1e3

    def clocked() -> float:
        with program.ticks.installed(ClockProbe()):
            return plain()

    with torch.no_grad():
        blocks = []
        for _ in range(BLOCKS):
            without = [plain() for _ in range(STEPS)][1:]
            blocks.append(statistics.median([clocked() for _ in range(STEPS)][1:]) - statistics.median(without))
    program.sync()
    inside, outside = inline_cost_us()
    # On a busy machine the difference of two programs may drown; a tight loop is the least that the reads can cost.
    scale = max(1.0, statistics.median(blocks) / program.sites / (inside + outside))
    return inside * scale, outside * scale


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
