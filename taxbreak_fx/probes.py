"""What is done at the two edges of every site of a step: read a clock, drain the device, or open a profiler range.

One probe serves all ways of reaching the sites (eager calls, FX nodes, Inductor wrapper lines): each calls ``enter()``
before a site and ``leave()`` after it, in issue order, so that site k of one pass is site k of every other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from taxbreak_fx.errors import MeasurementError

RANGE = "taxbreak.site."
STEP = "taxbreak.step"


class Probe(Protocol):
    """The two edges of a site.  Not re-entrant: sites do not nest."""

    @property
    def enter(self) -> Callable[[], None]:
        """Called before a site."""

    @property
    def leave(self) -> Callable[[], None]:
        """Called after it."""


class ClockProbe:
    """Reads the clock at both edges: ``stamps`` holds enter, leave, enter, leave … in nanoseconds."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        append, now = self.stamps.append, time.perf_counter_ns

        def edge() -> None:
            append(now())

        self.enter = self.leave = edge

    def split(self) -> tuple[list[float], list[float]]:
        """Microseconds inside each site and in each gap between one site's end and the next one's start."""
        at = self.stamps
        inside = [(at[i + 1] - at[i]) / 1e3 for i in range(0, len(at), 2)]
        gaps = [(at[i + 2] - at[i + 1]) / 1e3 for i in range(0, len(at) - 2, 2)]
        return inside, gaps


class DrainProbe:
    """Waits for an idle device before every site; the wait itself lies outside both the site and the gap."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.stamps: list[int] = []
        append, now = self.stamps.append, time.perf_counter_ns

        def enter() -> None:
            append(now())
            synchronize()
            append(now())

        def leave() -> None:
            append(now())

        self.enter, self.leave = enter, leave

    def split(self) -> tuple[list[float], list[float]]:
        """As ``ClockProbe.split``."""
        at = self.stamps
        inside = [(at[i + 2] - at[i + 1]) / 1e3 for i in range(0, len(at), 3)]
        gaps = [(at[i + 3] - at[i + 2]) / 1e3 for i in range(0, len(at) - 3, 3)]
        return inside, gaps


class RangeProbe:
    """Opens a profiler range named after the site's index; for traced passes only."""

    def __init__(self) -> None:
        self.count = 0
        self._open: Any = None

    def enter(self) -> None:
        """Open the range of the next site."""
        self._open = torch._C._profiler._RecordFunctionFast(f"{RANGE}{self.count}")
        self._open.__enter__()
        self.count += 1

    def leave(self) -> None:
        """Close the range."""
        self._open.__exit__(None, None, None)


class CountProbe:
    """Counts sites and does nothing else; its passes show that two passes of a step have the same sites."""

    def __init__(self) -> None:
        self.count = 0

    def enter(self) -> None:
        """Count one site."""
        self.count += 1

    def leave(self) -> None:
        """Nothing to do at the end of a site."""


def clock_cost_us(repeats: int = 20_000) -> tuple[float, float]:
    """The clock's own cost per site in microseconds: (inside the site, outside it), measured on empty sites.

    Raises ``MeasurementError`` when the clock does not advance.
    """
    rounds = []
    for _ in range(5):
        probe = ClockProbe()
        enter, leave = probe.enter, probe.leave
        start = time.perf_counter_ns()
        for _ in range(repeats):
            enter()
            leave()
        total = (time.perf_counter_ns() - start) / 1e3 / repeats
        start = time.perf_counter_ns()
        for _ in range(repeats):
            pass
        empty_loop = (time.perf_counter_ns() - start) / 1e3 / repeats
        inside = statistics.median(probe.split()[0])
        rounds.append((inside, total - inside - empty_loop))
    inside, outside = (statistics.median(column) for column in zip(*rounds, strict=True))
    if inside <= 0.0:
        raise MeasurementError(
            "the monotonic clock does not advance between two reads; in-situ times need one that does"
        )
    return inside, outside
