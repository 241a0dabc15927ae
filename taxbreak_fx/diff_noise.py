"""What a variant of the base would show on the head's machine if nothing had changed, with its noise (docs/diff.md).

Pure; microseconds.  Intervals are worst cases put together, not confidence: a gate that cries wolf is switched off.
"""

from __future__ import annotations

import math
from functools import cached_property

from taxbreak_fx.compare import REPLAY_SPREAD
from taxbreak_fx.diff_clock import DRIFT, HOST_BOUND
from taxbreak_fx.diff_metrics import Metric
from taxbreak_fx.diff_types import Clock, Expected
from taxbreak_fx.model import Variant
from taxbreak_fx.record import Percentiles
from taxbreak_fx.timeline import Simulator, Term
from taxbreak_fx.timeline_store import restored
from taxbreak_fx.variant_record import Node
from taxbreak_fx.whatif_timeline import on_faster_host

# The same kernels traced in three processes on H200s differed by up to 4 % per variant (24 reviews, 2026-11-23); copies
# for which the host waits went from 181 to 286 µs with nothing changed: those count as unknown.
DEVICE_SPREAD = 0.05
# Of predictions from one profile, which differ by less only in what rounding left: timelines are kept to 0.01 µs a row.
LEAST_US, LEAST_INDEX = 0.05, 0.0005
MEMORY_SPREAD = 0.02  # of the peak: the allocator's rounding, and workspaces that a library asks for once


class Noise:
    """The expectations of one variant that is ok in both reviews; ``base`` and ``head`` as the files have it.

    ``floors``: T_sys of base and head, where they are known.  ``cpu``: host and device are one thread.
    """

    def __init__(
        self,
        base: Variant,
        head: Variant,
        clock: Clock,
        floors: tuple[Percentiles | None, Percentiles | None],
        cpu: bool,
    ) -> None:
        self._base, self._head, self._clock, self._floors, self._cpu = base, head, clock, floors, cpu

    def expected(self, metric: Metric, value: float) -> Expected | str:
        """For a base that has ``value``; or the reason why nothing can be expected."""
        if metric.kind == "exact" or (self._clock.exact and metric.unit == "bytes"):
            return Expected(value=value, low=value, high=value)
        if self._clock.exact:
            least = LEAST_INDEX if metric.kind == "index" else LEAST_US
            return Expected(value=value, low=value - least, high=value + least)
        if metric.kind == "memory":
            return _between(value, value * (1 - MEMORY_SPREAD), value * (1 + MEMORY_SPREAD))
        if metric.kind == "device" and not self._cpu:
            return self._device(value)
        if self._clock.host is None:
            return self._clock.source
        if metric.kind == "host":
            return self._host(value)
        if metric.kind == "library" and not self._cpu:
            return self._library(value)
        if metric.kind == "device":
            return self._apart(value)
        if metric.kind in ("split", "library"):
            return self._split(value)
        if metric.kind == "wall":
            return self._wall(value)
        if metric.kind == "calibrated":
            return self._floor(value)
        if metric.kind == "orchestration":
            return self._orchestration()
        if metric.kind == "index":
            return self._index()
        return self._exposed(metric)

    def row(self, value_us: float) -> Expected | None:
        """Host time of one row: in situ, rows scatter by up to the drift of a whole timing more than their sum."""
        if self._clock.exact:
            return Expected(value=value_us, low=value_us - LEAST_US, high=value_us + LEAST_US)
        if self._clock.host is None:
            return None
        middle = value_us * self._clock.host
        reach = abs(middle) * (self._clock.spread**2 - 1.0) + (self._clock.spread - 1.0) * self._host_us / 20
        return Expected(value=middle, low=middle - reach, high=middle + reach)

    def device_row(self, base: Node) -> Expected | None:
        """Device time of one row; None where it cannot be told from noise.

        Measured kernels scatter one by one more than their sum: they are looked at where the whole has changed.
        """
        if base.device_us is None:
            return None
        if self._clock.exact:
            return _between(base.device_us, base.device_us - LEAST_US, base.device_us + LEAST_US)
        before, after = self._base.device_active_us, self._head.device_active_us
        if self._cpu or base.kernels == 0 or before is None or after is None:
            return None
        whole = self._device(before)
        if whole.low <= after <= whole.high:
            return None
        reach = base.device_us * ((1 + DEVICE_SPREAD) ** 2 - 1) + DEVICE_SPREAD * before / 20
        return _between(base.device_us, base.device_us - reach, base.device_us + reach)

    @property
    def _scale(self) -> tuple[float, float, float]:
        """The clock: lowest, likeliest, highest."""
        assert self._clock.host is not None
        return self._clock.host / self._clock.spread, self._clock.host, self._clock.host * self._clock.spread

    @property
    def _host_us(self) -> float:
        """T_host, the larger of the base's on the head's clock and the head's own."""
        assert self._clock.host is not None
        a, b = self._base.t_host_us, self._head.t_host_us
        return max(a.median * self._clock.host if a else 0.0, b.median if b else 0.0)

    def _host(self, value: float) -> Expected:
        """A graph's launch is the driver's work, which may follow the host's clock or not."""
        low, middle, high = (value * scale for scale in self._scale)
        if self._base.graph_launches:
            launch = min(_or(self._base.launch_us, 0.0), value)
            low, high = (
                min(low, low + launch * (1.0 - self._scale[0])),
                max(high, high + launch * (1.0 - self._scale[2])),
            )
        return _between(middle, low, high)

    def _split(self, value: float) -> Expected:
        """A part is T_host less others: it is as unsure as T_host, and as replay, where replay told it apart.

        On the CPU it is also less the device's own time, which was timed at another moment.
        """
        assert self._clock.host is not None
        library = max((v.breakdown.ct_us or 0.0) if v.breakdown else 0.0 for v in (self._base, self._head))
        reach = (self._clock.spread - 1.0) * self._host_us
        reach += REPLAY_SPREAD * (self._host_us if self._cpu else max(library, 0.0))
        if self._cpu:
            own = _or(self._base.device_active_us, 0.0) * self._clock.host, _or(self._head.device_active_us, 0.0)
            reach += (DRIFT - 1.0) * max(own)
        middle = value * self._clock.host
        return Expected(value=middle, low=middle - reach, high=middle + reach)

    def _library(self, value: float) -> Expected:
        """ΔCT is timed call by call: it scatters as rows do, and as replay, where replay told it apart."""
        assert self._clock.host is not None
        middle = value * self._clock.host
        head = (self._head.breakdown.ct_us or 0.0) if self._head.breakdown else 0.0
        reach = abs(middle) * (self._clock.spread**2 - 1.0) + REPLAY_SPREAD * max(middle, head, 0.0)
        return Expected(value=middle, low=middle - reach, high=middle + reach)

    def _wall(self, value: float) -> Expected:
        """Between the host's clock and none.

        T_wall grows with host and device times and is linear in both together, so that on a host c times as slow it
        lies between c·T and c·T + (1 − c)·D, where D, at most T, is all device work, or all that is not the host's own
        (T − T_issue: latencies and gaps too).  The CPU device slows down whole.
        """
        rest = max(_or(self._base.device_sum_us, value), value - _or(self._base.issue_us, value))
        device = 0.0 if self._cpu else min(rest, value)
        ends = [scale * value + share * (1.0 - scale) * device for scale in self._scale for share in (0.0, 1.0)]
        # A step that is all host slows down whole; where it is not, the middle of the two is as good as any.
        host_bound = _or(self._base.issue_us, 0.0) >= HOST_BOUND * value
        middle = ends[2] if host_bound else (ends[2] + ends[3]) / 2
        extra = 1.0 + (0.0 if self._cpu else DEVICE_SPREAD)
        return _between(middle, min(ends) / extra, max(ends) * extra)

    def _apart(self, value: float) -> Expected:
        """The CPU device's own time, which was not timed in pairs but by itself: a whole drift may lie between."""
        low, middle, high = (value * scale for scale in self._scale)
        whole = self._split(value)
        return Expected(value=middle, low=min(low / DRIFT, whole.low), high=max(high * DRIFT, whole.high))

    def _device(self, value: float) -> Expected:
        reach = DEVICE_SPREAD * abs(value) + max(_copies(self._base), _copies(self._head))
        return Expected(value=value, low=value - reach, high=value + reach)

    def _floor(self, value: float) -> Expected:
        """Of launches: a count times one calibrated launch, which scatters as T_sys does and follows the host or not.

        A graph's own launch was timed with the variant, a few times only: it may be off by a whole drift of the host.
        """
        a, b = self._floors
        scale = (*self._scale, 1.0)
        low, high = min(scale), max(scale)
        drifted = 1.0
        if a is not None and b is not None and min(a.p5, b.p5, a.p50, b.p50) > 0:
            drifted = b.p50 / a.p50
            low = min(low, drifted * min(a.p5 / a.p50, b.p5 / b.p50))
            high = max(high, drifted * max(a.p95 / a.p50, b.p95 / b.p50))
        if self._base.graph_launches or self._head.graph_launches:
            low, high = low / DRIFT, high * DRIFT
        return _between(value * drifted, value * low, value * high)

    def _orchestration(self) -> Expected | str:
        terms = self._base.breakdown
        if terms is None or terms.ft_us is None or terms.ct_us is None:
            return "a term of it is not known"
        host, floor = self._split(terms.ft_us + terms.ct_us), self._floor(terms.kt_us or 0.0)
        return Expected(value=host.value + floor.value, low=host.low + floor.low, high=host.high + floor.high)

    def _index(self) -> Expected | str:
        """HDBI = D / (D + O) grows with device time D and falls with orchestration O."""
        whole = self._orchestration()
        if isinstance(whole, str) or self._base.device_active_us is None:
            return whole if isinstance(whole, str) else "device time is not known"
        active = self._base.device_active_us
        device = self._apart(active) if self._cpu else self._device(active)

        def index(busy: float, orchestration: float) -> float:
            busy, orchestration = max(busy, 0.0), max(orchestration, 0.0)
            return busy / (busy + orchestration) if busy + orchestration else 0.0

        ends = index(device.low, whole.high), index(device.high, whole.low)
        return Expected(value=min(max(index(device.value, whole.value), ends[0]), ends[1]), low=ends[0], high=ends[1])

    def _exposed(self, metric: Metric) -> Expected | str:
        """By simulation of the base's step on a host as fast as the head's, at the ends of its clock too.

        T_wall changes by no more than device times do, which are unsure by ``DEVICE_SPREAD``.
        """
        if self._base.timeline is None:
            return "the base has no timeline, by which it could be brought to the head's clock"
        term: Term = _TERMS[metric.name]
        found = [walls[()] - walls[(term,)] for walls in self._simulated]
        reach = DEVICE_SPREAD * _or(self._base.device_sum_us, 0.0) + max(_copies(self._base), _copies(self._head))
        value = found[1]
        return Expected(value=value, low=min(found) - reach, high=max(found) + reach)

    @cached_property
    def _simulated(self) -> list[dict[tuple[Term, ...], float]]:
        """T_wall of the base's step whole and without each term, at the three clocks."""
        assert self._base.timeline is not None
        timeline = restored(self._base.timeline)
        simulators = [Simulator(on_faster_host(timeline, 1.0 / scale)) for scale in self._scale]
        cases: list[tuple[Term, ...]] = [(), *((term,) for term in _TERMS.values())]
        return [{case: simulator.wall_without(case) for case in cases} for simulator in simulators]


_TERMS: dict[str, Term] = {
    "exposed.ft_us": "ft",
    "exposed.ct_us": "ct",
    "exposed.kt_us": "kt",
    "exposed.sync_us": "sync",
    "exposed.device_us": "device",
}


def _between(value: float, *ends: float) -> Expected:
    """Around ``value``, which may be negative: terms keep their sign."""
    return Expected(value=value, low=min(value, *ends), high=max(value, *ends))


def _copies(variant: Variant) -> float:
    """Device time of the rows that run no kernel: copies, whose time is the bus's and the waiting host's."""
    return math.fsum(node.device_us or 0.0 for node in variant.nodes if node.kernels == 0)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
