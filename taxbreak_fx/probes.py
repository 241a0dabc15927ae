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
    """Reads the clock at both edges: ``stamps`` holds enter, leave, enter, leave … in nanoseconds.

    ``graphs`` and ``codes`` take the same of every graph callable and of every wrapper module's code, where there are
    such around the sites.
    """

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.graphs: list[int] = []
        self.codes: list[int] = []
        append, now = self.stamps.append, time.perf_counter_ns

        def edge() -> None:
            append(now())

        self.enter = self.leave = edge

    def split(self) -> list[float]:
        """Microseconds inside each site."""
        return between(self.stamps)


class DrainProbe:
    """Waits for an idle device before every site; the wait itself lies outside the site."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.stamps: list[int] = []
        append, now = self.stamps.append, time.perf_counter_ns

        def enter() -> None:
            synchronize()
            append(now())

        def leave() -> None:
            append(now())

        self.enter, self.leave = enter, leave

    def split(self) -> list[float]:
        """As ``ClockProbe.split``."""
        return between(self.stamps)


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


def between(stamps: list[int]) -> list[float]:
    """Microseconds from each enter to its leave, of stamps in nanoseconds that alternate."""
    return [(stamps[i + 1] - stamps[i]) / 1e3 for i in range(0, len(stamps), 2)]


def inline_cost_us(repeats: int = 20_000) -> tuple[float, float]:
    """As ``clock_cost_us``, for reads that stand in the code itself and call no function of ours."""
    rounds = []
    for _ in range(5):
        stamps: list[int] = []
        append, now = stamps.append, time.perf_counter_ns
        start = now()
        for _ in range(repeats):
            append(now())
            append(now())
        total = now() - start
        rounds.append((total, _empty_loop_ns(repeats), stamps))
    return _cost_us(rounds, repeats)


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
        total = time.perf_counter_ns() - start
        rounds.append((total, _empty_loop_ns(repeats), probe.stamps))
    return _cost_us(rounds, repeats)


def _empty_loop_ns(repeats: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        pass
    return time.perf_counter_ns() - start


def _cost_us(rounds: list[tuple[int, int, list[int]]], repeats: int) -> tuple[float, float]:
    """The least of the rounds (whole loop, empty loop, stamps): a disturbed one only ever takes longer."""
    total, empty = (min(column) / 1e3 / repeats for column in ([r[0] for r in rounds], [r[1] for r in rounds]))
    inside = min(statistics.median(between(stamps)) for _, _, stamps in rounds)
    if inside <= 0.0:
        raise MeasurementError(
            "the monotonic clock does not advance between two reads; in-situ times need one that does"
        )
    return inside, total - empty - inside
