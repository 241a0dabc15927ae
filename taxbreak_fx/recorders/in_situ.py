"""In-situ times: a clock at the edges of every site of the running step, and what the clock itself costs.

Plain, clocked and drained steps alternate in short blocks, so that all meet the same host; within a block, each is
brought to the speed of the plain steps before and after it.  Hosts change speed at once, by up to 1.9 times (H200,
2026-11-23): the half of the blocks in which the plain steps before and after agree least is left out.
"""

from __future__ import annotations

import math
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.observe import EagerSites, wrapper_sites
from taxbreak_fx.probes import ClockProbe, DrainProbe, between, clock_cost_us
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recording import InSitu, Spans
from taxbreak_fx.tick_cost import routing_cost_us, tick_cost_us
from taxbreak_fx.variants import Built

MIN_BLOCKS, MAX_BLOCKS = 4, 12
PLAIN_STEPS, CLOCKED_STEPS, DRAINED_STEPS = 3, 3, 1  # per block; one more of each warms code that was just exchanged
FEWEST_STEPS = MIN_BLOCKS * (PLAIN_STEPS + CLOCKED_STEPS + DRAINED_STEPS + 3) + PLAIN_STEPS + 1
_REPEATS = 2_000


def observation_cost_us(mechanism: str, device: str) -> tuple[float, float]:
    """What observing one site adds, in microseconds: (inside the site, outside it), by ``Built.mechanism``.

    ``ticks`` are measured in a program of mixed calls; ``generated`` calls cost the clock and themselves;
    ``function mode`` and ``stand-in`` are measured on cheap real calls with and without the mechanism.
    """
    if mechanism == "ticks":
        return tick_cost_us(device)
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
    """One observed step: microseconds as read, and the un-instrumented T_host around its block."""

    total: float
    sites: list[float]
    graphs: list[float]
    codes: list[float]
    plain: float = math.nan


@dataclass
class _Block:
    """Observed steps, and the median T_host of the plain steps before and after them."""

    clocked: list[_Pass]
    drained: list[_Pass]
    before: float
    after: float = math.nan

    @property
    def unsteady(self) -> float:
        """How far the host's speed changed meanwhile; 0 for not at all."""
        return abs(math.log(self.after / self.before))


def in_situ(bench: Bench, built: Built, sites: int) -> tuple[Spans, InSitu, InSitu | None]:
    """Clock the step's sites, ``sites`` of them by the recording pass: the step's spans, and the times of its sites.

    The last is of a drained device, None on the CPU and for graphed steps.  Raises ``MeasurementError`` when a pass
    meets another number of sites: the step is not the same work each time.
    """
    inside, outside = observation_cost_us(built.mechanism, bench.device)
    mark = clock_cost_us()
    nested = [0] * sites if built.ticks is None else built.ticks.nested
    blocks: list[_Block] = []
    draining = bench.device == "cuda" and not built.graphed
    # A drained pass reaches its probe by calls where the clock is read in the code itself.
    routing = routing_cost_us(bench.device) if draining and built.mechanism == "ticks" else 0.0
    deadline = time.perf_counter() + bench.budget_s
    with torch.no_grad(), quiet_gc():
        before = _plain_us(bench, built)
        while len(blocks) < MIN_BLOCKS or (len(blocks) < MAX_BLOCKS and time.perf_counter() < deadline):
            clocked = [_observed(bench, built, ClockProbe(), sites) for _ in range(CLOCKED_STEPS + 1)][1:]
            probes = [DrainProbe(bench.sync) for _ in range(DRAINED_STEPS + 1 if draining else 0)]
            drained = [_observed(bench, built, probe, sites) for probe in probes][1:]
            blocks.append(_Block(clocked, drained, before, _plain_us(bench, built)))
            before = blocks[-1].after
    clocked, drained, host = _steady(blocks)
    kept = _middle(clocked, host)
    cost = inside + outside
    own = [inside + count * cost for count in nested]  # what reading the clock took inside each site
    site_us = [us - read for us, read in zip(_columns(kept, host), own, strict=True)]
    spans = _spans(kept, host, sum(site_us), sum(own), outside, mark)
    clock = InSitu(drained=False, site_us=site_us, host_us=host, probe_us=cost, steps=len(clocked))
    if not drained:
        return spans, clock, None
    idle = [us - read - routing for us, read in zip(_columns(_middle(drained, host), host), own, strict=True)]
    return spans, clock, InSitu(drained=True, site_us=idle, host_us=host, probe_us=cost + routing, steps=len(drained))


def _plain_us(bench: Bench, built: Built) -> float:
    return statistics.median([bench.timed(built)[1] for _ in range(PLAIN_STEPS + 1)][1:])


def _steady(blocks: list[_Block]) -> tuple[list[_Pass], list[_Pass], float]:
    """The passes of the steadier half of the blocks, each with its T_host, and the median of those."""
    steady = sorted(blocks, key=lambda block: block.unsteady)[: (len(blocks) + 1) // 2]
    for block in steady:
        for one in (*block.clocked, *block.drained):
            one.plain = (block.before + block.after) / 2
    host = statistics.median((block.before + block.after) / 2 for block in steady)
    return [one for block in steady for one in block.clocked], [one for block in steady for one in block.drained], host


def _observed(bench: Bench, built: Built, probe: ClockProbe | DrainProbe, sites: int) -> _Pass:
    bench.snapshot.restore()
    built.prepare()
    bench.sync()
    with built.observe(probe):
        started = time.perf_counter_ns()
        output = built.call()
        total = (time.perf_counter_ns() - started) / 1e3
    bench.sync()
    del output
    site_us = probe.split()
    if len(site_us) != sites:
        raise MeasurementError(
            f"the step met {len(site_us)} calls in one pass and {sites} in another: its work depends on data"
        )
    graphs, codes = (probe.graphs, probe.codes) if isinstance(probe, ClockProbe) else ([], [])
    return _Pass(total, site_us, between(graphs), between(codes))


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
    return Spans(
        around_us=total - mean(lambda one: sum(one.graphs)) - graphs * mark[1] if graphs else None,
        runtime_us=in_graphs - mean(lambda one: sum(one.codes)) - codes * mark[1] if codes else None,
        glue_us=in_codes - observed - count * outside,
        sites_us=sites_us,
        host_us=host,
    )
