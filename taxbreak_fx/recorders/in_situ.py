"""In-situ times: a clock at the edges of every site of the running step, and what the clock itself costs."""

from __future__ import annotations

import contextlib
import statistics
import time
import types
from collections.abc import Callable

import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.observe import EagerSites, wrapper_sites
from taxbreak_fx.probes import ClockProbe, CountProbe, DrainProbe, clock_cost_us
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recording import InSitu
from taxbreak_fx.variants import Built

CLOCKED_STEPS = 7
DRAINED_STEPS = 5
STACKED_STEPS = 9
_REPEATS = 2_000


def observation_cost_us(mechanism: str) -> tuple[float, float]:
    """What observing one site adds, in microseconds: (inside the site, outside it), by ``Built.mechanism``.

    ``function mode`` and ``stand-in`` are measured on cheap real calls with and without the mechanism; ``generated``
    clock reads cost the clock alone.
    """
    if mechanism == "generated":
        return clock_cost_us()
    if mechanism == "function mode":
        tensor = torch.zeros(2)
        calls: list[Callable[[], object]] = [
            lambda: tensor.shape,
            tensor.size,
            lambda: torch.numel(tensor),
            lambda: tensor.view(-1),
        ]
        costs = [_mode_cost(call) for call in calls]
        return statistics.fmean(c[0] for c in costs), statistics.fmean(c[1] for c in costs)
    return _stand_in_cost()


def stacked_mode_cost_us(bench: Bench, built: Built, sites: int) -> float:
    """What one layer of the function mode adds per site, measured on the step itself: two layers minus one.

    A tight loop over one cheap call understates it, because in the step the mode's own code is not hot either.
    """
    probe = CountProbe()

    def host_us(layers: int) -> float:
        bench.snapshot.restore()
        built.prepare()
        bench.sync()
        with contextlib.ExitStack() as stack:
            for _ in range(layers):
                stack.enter_context(built.observe(probe))
            started = time.perf_counter_ns()
            output = built.call()
            elapsed = (time.perf_counter_ns() - started) / 1e3
        bench.sync()
        del output
        return elapsed

    with torch.no_grad(), quiet_gc():
        host_us(2)
        differences = [host_us(2) - host_us(1) for _ in range(STACKED_STEPS)]
    return statistics.median(differences) / sites


def _mode_cost(call: Callable[[], object]) -> tuple[float, float]:
    native = _per_call_us(call)
    probe = ClockProbe()
    with EagerSites(probe):
        total = _per_call_us(call)
    inside = statistics.median(probe.split()[0])
    return inside - native, total - inside


def _stand_in_cost() -> tuple[float, float]:
    module = types.ModuleType("probe")
    module.empty_strided_probe = abs  # type: ignore[attr-defined]
    namespace = vars(module)
    native = _per_call_us(lambda: namespace["empty_strided_probe"](1))
    probe = ClockProbe()
    with wrapper_sites([module], probe, None, lambda: 0):
        total = _per_call_us(lambda: namespace["empty_strided_probe"](1))
    inside = statistics.median(probe.split()[0])
    # The lambda around the call is in both totals; what a bare call costs is inside the site.
    return inside - _per_call_us_of_abs(), total - native - (inside - _per_call_us_of_abs())


def _per_call_us_of_abs() -> float:
    absolute = abs
    rounds = []
    for _ in range(5):
        started = time.perf_counter_ns()
        for _ in range(_REPEATS):
            absolute(1)
        rounds.append((time.perf_counter_ns() - started) / 1e3 / _REPEATS)
    return min(rounds)


def _per_call_us(call: Callable[[], object]) -> float:
    rounds = []
    for _ in range(5):
        started = time.perf_counter_ns()
        for _ in range(_REPEATS):
            call()
        rounds.append((time.perf_counter_ns() - started) / 1e3 / _REPEATS)
    return statistics.median(rounds)


def in_situ(bench: Bench, built: Built, sites: int, drained: bool) -> InSitu:
    """Clock the step's sites, ``sites`` of them by the recording pass.

    Raises ``MeasurementError`` when a pass meets another number of sites: the step is not the same work each time.
    """
    inside_cost, outside_cost = observation_cost_us(built.mechanism)
    if built.mechanism == "function mode" and sites:
        outside_cost = stacked_mode_cost_us(bench, built, sites) - inside_cost
    steps = DRAINED_STEPS if drained else CLOCKED_STEPS
    inside: list[list[float]] = []
    gaps: list[list[float]] = []
    hosts: list[float] = []
    with torch.no_grad(), quiet_gc():
        for number in range(steps + 1):
            probe = DrainProbe(bench.sync) if drained else ClockProbe()
            bench.snapshot.restore()
            built.prepare()
            bench.sync()
            with built.observe(probe):
                output = built.call()
            bench.sync()
            del output
            if number == 0:
                continue  # the first pass warms the mechanism's own code
            site_us, gap_us = probe.split()
            if len(site_us) != sites:
                raise MeasurementError(
                    f"the step met {len(site_us)} calls in one pass and {sites} in another: its work depends on data"
                )
            inside.append(site_us)
            gaps.append(gap_us)
            hosts.append(bench.timed(built)[1])
    return InSitu(
        drained=drained,
        site_us=[statistics.median(column) - inside_cost for column in zip(*inside, strict=True)],
        gap_us=[statistics.median(column) - outside_cost for column in zip(*gaps, strict=True)],
        host_us=statistics.median(hosts),
        probe_us=inside_cost + outside_cost,
        steps=steps,
    )
