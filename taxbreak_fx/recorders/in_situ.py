"""In-situ times: a clock at the edges of every site of the running step, and what the clock itself costs.

Plain and clocked steps alternate, so that all meet the same host, and each clocked step is brought to the speed of the
plain steps before and after it.  Hosts change speed at once, by up to 1.9 times, several times a second (H200,
2026-11-23): the half of the clocked steps around which the plain ones agree least is left out.
"""

from __future__ import annotations

import math
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.observe import EagerSites, wrapper_sites
from taxbreak_fx.probes import ClockProbe, DrainProbe, between, clock_cost_us
from taxbreak_fx.recorders.bench import Bench, quiet_gc, usage
from taxbreak_fx.recording import InSitu, Spans
from taxbreak_fx.tick_cost import TickCost, routing_cost_us
from taxbreak_fx.variants import Built

MIN_PASSES, MAX_PASSES = 12, 60
DRAIN_EVERY = 3  # clocked steps; one more drained and one more plain step warm the code exchanged for it
FEWEST_STEPS = 2 + 2 * MIN_PASSES + 4 * MIN_PASSES // DRAIN_EVERY
_REPEATS = 2_000


def observation_cost_us(mechanism: str) -> tuple[float, float]:
    """What observing one site adds, in microseconds: (inside the site, outside it), by ``Built.mechanism``.

    ``ticks`` have a measure of their own (``TickCost``); ``generated`` calls cost the clock and themselves;
    ``function mode`` and ``stand-in`` are measured on cheap real calls with and without the mechanism.
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


def _mode_cost(call: Callable[[], object]) -> tuple[float, float]:
    native = _per_call_us(call)
    probe = ClockProbe()
    with EagerSites(probe):
        total = _per_call_us(call)
    inside = statistics.median(probe.split())
    return inside - native, total - inside


def _stand_in_cost() -> tuple[float, float]:
    module = types.ModuleType("probe")
    module.call = None  # type: ignore[attr-defined]
    module.empty_strided_probe = abs  # type: ignore[attr-defined]
    namespace = vars(module)
    native = _per_call_us(lambda: namespace["empty_strided_probe"](1))
    probe = ClockProbe()
    with wrapper_sites([module], probe, None, lambda: 0):
        total = _per_call_us(lambda: namespace["empty_strided_probe"](1))
    inside = statistics.median(probe.split())
    # The lambda around the call is in both totals; what a bare call costs is inside the site.
    bare = _per_call_us_of_abs()
    return inside - bare, total - native - (inside - bare)


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


@dataclass
class _Pass:
    """One observed step: microseconds as read, and the un-instrumented T_host of the plain steps around it."""

    total: float
    sites: list[float]
    graphs: list[float]
    codes: list[float]
    gaps: list[float]
    faults: int
    before: float
    after: float = math.nan

    @property
    def plain(self) -> float:
        """T_host at the host's speed meanwhile."""
        return (self.before + self.after) / 2

    @property
    def unsteady(self) -> float:
        """How far that speed changed meanwhile; 0 for not at all."""
        return abs(math.log(self.after / self.before))


def in_situ(bench: Bench, built: Built, sites: int) -> tuple[Spans, InSitu, InSitu | None]:
    """Clock the step's sites, ``sites`` of them by the recording pass: the step's spans, and the times of its sites.

    The last is of a drained device, None on the CPU and for graphed steps.  Raises ``MeasurementError`` when a pass
    meets another number of sites: the step is not the same work each time.
    """
    ticks = TickCost(bench.device) if built.mechanism == "ticks" else None
    mark = clock_cost_us()
    nested = [0] * sites if built.ticks is None else built.ticks.nested
    clocked: list[_Pass] = []
    drained: list[_Pass] = []
    plain_faults: list[int] = []
    draining = bench.device == "cuda" and not built.graphed
    # A drained pass reaches its probe by calls where the clock is read in the code itself.
    routing = routing_cost_us(bench.device) if draining and built.mechanism == "ticks" else 0.0
    deadline = time.perf_counter() + bench.budget_s
    with torch.no_grad(), quiet_gc():
        _observed(bench, built, ClockProbe(), sites, math.nan)
        before = bench.timed(built)[1]
        faults = bench.faults
        while len(clocked) < MIN_PASSES or (len(clocked) < MAX_PASSES and time.perf_counter() < deadline):
            if ticks is not None:
                ticks.plain()
            clocked.append(_observed(bench, built, ClockProbe(), sites, before))
            if ticks is not None:  # so that the plain step, too, comes behind other code
                ticks.clocked()
            before = clocked[-1].after = bench.timed(built)[1]
            plain_faults.append(bench.faults - faults)
            if draining and len(clocked) % DRAIN_EVERY == 0:
                _observed(bench, built, DrainProbe(bench.sync), sites, math.nan)
                drained.append(_observed(bench, built, DrainProbe(bench.sync), sites, before))
                bench.timed(built)
                before = drained[-1].after = bench.timed(built)[1]
            faults = bench.faults
    inside, outside = observation_cost_us(built.mechanism) if ticks is None else ticks.cost_us()
    own_faults = [one.faults for one in clocked]
    passes = [(one.total, one.before, one.after) for one in clocked]
    clocked, drained = _steady(clocked), _steady(drained)
    host = statistics.median(one.plain for one in clocked)
    kept = _middle(clocked, host)
    cost = inside + outside
    own = [inside + count * cost for count in nested]  # what reading the clock took inside each site
    site_us = [us - read for us, read in zip(_columns(kept, host), own, strict=True)]
    spans = msgspec.structs.replace(
        _spans(kept, host, sum(site_us), sum(own), outside, mark),
        passes_us=passes,
        faults=(statistics.median(plain_faults), statistics.median(own_faults)),
    )
    clock = InSitu(drained=False, site_us=site_us, host_us=host, probe_us=cost, steps=len(clocked))
    if not drained:
        return spans, clock, None
    idle = [us - read - routing for us, read in zip(_columns(_middle(drained, host), host), own, strict=True)]
    return spans, clock, InSitu(drained=True, site_us=idle, host_us=host, probe_us=cost + routing, steps=len(drained))


def _steady(passes: list[_Pass]) -> list[_Pass]:
    """The half of the passes during which the host kept its speed best."""
    return sorted(passes, key=lambda one: one.unsteady)[: (len(passes) + 1) // 2]


def _observed(bench: Bench, built: Built, probe: ClockProbe | DrainProbe, sites: int, before: float) -> _Pass:
    bench.snapshot.restore()
    built.prepare()
    bench.sync()
    with built.observe(probe):
        faults = usage().ru_minflt
        started = time.perf_counter_ns()
        output = built.call()
        ended = time.perf_counter_ns()
        faults = usage().ru_minflt - faults
    bench.sync()
    del output
    site_us = probe.split()
    if len(site_us) != sites:
        raise MeasurementError(
            f"the step met {len(site_us)} calls in one pass and {sites} in another: its work depends on data"
        )
    graphs, codes = (probe.graphs, probe.codes) if isinstance(probe, ClockProbe) else ([], [])
    # Before the first site, between each two, behind the last; a drained pass holds the draining there.
    gaps = between([started, *probe.stamps, ended]) if isinstance(probe, ClockProbe) else []
    return _Pass((ended - started) / 1e3, site_us, between(graphs), between(codes), gaps, faults, before)


def _middle(passes: list[_Pass], host: float) -> list[_Pass]:
    """The half of the passes whose totals, brought to one speed, lie in the middle.

    Means over whole passes add up, which medians site by site do not: the sum of medians misses what every pass has
    somewhere.
    """
    ordered = sorted(passes, key=lambda one: one.total * host / one.plain)
    quarter = len(ordered) // 4
    return ordered[quarter : len(ordered) - quarter]


def _columns(passes: list[_Pass], host: float) -> list[float]:
    """Mean of each site, every pass brought to the speed at which T_host was ``host``."""
    scaled = [[us * host / one.plain for us in one.sites] for one in passes]
    return [statistics.fmean(column) for column in zip(*scaled, strict=True)]


def _spans(
    kept: list[_Pass], host: float, sites_us: float, read_us: float, outside: float, mark: tuple[float, float]
) -> Spans:
    """What the clocked passes hold besides their sites; costs of the clock are removed where they fell.

    ``read_us``: what reading the clock took inside the sites, all together.
    """

    def mean(of: Callable[[_Pass], float]) -> float:
        return statistics.fmean(of(one) * host / one.plain for one in kept)

    count, graphs, codes = len(kept[0].sites), len(kept[0].graphs), len(kept[0].codes)
    total = mean(lambda one: one.total)
    in_graphs = mean(lambda one: sum(one.graphs)) - graphs * mark[0] if graphs else total
    in_codes = mean(lambda one: sum(one.codes)) - codes * mark[0] if codes else in_graphs
    observed = sites_us + read_us  # the sites as they stand in the totals
    edges = [outside / 2, *[outside] * (count - 1), outside / 2] if count else [0.0]  # the clock's part in each gap
    columns = zip(*[[us * host / one.plain for us in one.gaps] for one in kept], strict=True)
    return Spans(
        around_us=total - mean(lambda one: sum(one.graphs)) - graphs * mark[1] if graphs else None,
        runtime_us=in_graphs - mean(lambda one: sum(one.codes)) - codes * mark[1] if codes else None,
        glue_us=in_codes - observed - count * outside,
        sites_us=sites_us,
        host_us=host,
        gaps_us=[statistics.fmean(column) - read for column, read in zip(columns, edges, strict=True)],
    )
