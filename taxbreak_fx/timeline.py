"""One step on the host, the device's streams and the launch queue: what the wall clock would show, and what it would
show without a part of the work.

Pure functions over frozen records; all times in microseconds.  The recurrence is that of docs/method.md, "Timeline":
work starts at max(issued + L, end of the work before it on its stream + g, the events that its stream waits for), a
synchronisation sets the host to max(host, end) + s, and T_wall = max(host + i, end + s): the synchronisation after the
step takes i where the device is idle before it is called.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from taxbreak_fx.decompose import flag_way
from taxbreak_fx.record import Percentiles, Record, SourceLine
from taxbreak_fx.variant_record import ExposedCost

QUEUE_DEPTH = 1_024  # launches that one stream takes before the host blocks; the driver's, about
Term = Literal["ft", "ct", "kt", "sync", "device"]
# Ordered removal: the framework first, since it is what a variant of the step removes first; the device's work last.
WATERFALL: tuple[Term, ...] = ("ft", "ct", "kt", "sync", "device")
_NOTHING, _WORK, _SYNC, _HOLD = range(4)
_ALL, _UNUSED = -1, -2  # in a stream's place: every stream; one that was given no work, so that nothing waits for it
T = TypeVar("T", bound=Hashable)


class Piece(Record, frozen=True, kw_only=True):
    """One kernel, copy or fill on the device."""

    us: float
    family: str


class Work(Record, frozen=True, kw_only=True):
    """What one launch puts on a stream: one piece, or the nodes of a CUDA graph in the order in which they run.

    ``first_node_us``, of a graph only: entry of the launch call until its first node starts on a free stream.
    """

    kind: Literal["kernel", "memop", "graph"]
    stream: int
    pieces: tuple[Piece, ...]
    first_node_us: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "graph") == (self.first_node_us is None):
            raise ValueError(f"a {self.kind} launch with first_node_us {self.first_node_us}")
        if not self.pieces or (self.kind != "graph" and len(self.pieces) != 1):
            raise ValueError(f"a {self.kind} launch with {len(self.pieces)} pieces of work")
        if min([self.first_node_us or 0.0, *(piece.us for piece in self.pieces)]) < 0:
            raise ValueError("a duration on the device is below zero")


class Sync(Record, frozen=True, kw_only=True):
    """The host waits until ``stream`` is idle; None: until the whole device is.  ``back_us``: from then until the call
    has returned; None: s."""

    stream: int | None = None
    back_us: float | None = None

    def __post_init__(self) -> None:
        if (self.back_us or 0.0) < 0:
            raise ValueError("a synchronisation returns before the device is idle")


class Hold(Record, frozen=True, kw_only=True):
    """Work issued to ``stream`` from here on starts no sooner than the work of item ``until`` has ended: an event
    recorded behind that work, for which the stream waits.  The host does not."""

    stream: int
    until: int


class Item(Record, frozen=True, kw_only=True):
    """Host time of one place of the step, and what the host does at its end.

    ``ft_us`` and ``ct_us`` are spent first; ``launch_us`` is spent inside the launch call that ``action`` makes.
    """

    ft_us: float = 0.0
    ct_us: float = 0.0
    launch_us: float = 0.0
    action: Work | Sync | Hold | None = None
    family: str
    source: SourceLine | None = None

    def __post_init__(self) -> None:
        if min(self.ft_us, self.ct_us, self.launch_us) < 0:
            raise ValueError(f"host time of {self.family} is below zero")
        if self.launch_us and not isinstance(self.action, Work):
            raise ValueError(f"{self.family} spends time in a launch call that launches nothing")


class Floors(Record, frozen=True, kw_only=True):
    """The machine's constants, from calibration.

    ``latency_us`` (L): return of a kernel's launch call until its start on a free stream.  ``gap_us`` (g): end of a
    kernel until the start of the next one on its stream; ``graph_gap_us``: the same inside a CUDA graph, below zero
    where nodes overlap by more of their traced durations than lies between them.  ``sync_us`` (s): end of the device's
    work until the synchronisation that waited for it has returned; ``idle_sync_us`` (i): such a call from Python on an
    idle device, None: s too.
    """

    latency_us: float
    gap_us: float
    graph_gap_us: float
    sync_us: float
    idle_sync_us: float | None = None
    queue_depth: int = QUEUE_DEPTH

    def __post_init__(self) -> None:
        times = (self.latency_us, self.gap_us, self.sync_us, self.idle_sync_us or 0.0)
        if min(times) < 0 or self.queue_depth < 1:
            raise ValueError(f"the machine's constants are out of range: {self}")


class Timeline(Record, frozen=True, kw_only=True):
    """A step: its items in issue order.  Raises ``ValueError`` when a ``Hold`` names no earlier work."""

    items: tuple[Item, ...]
    floors: Floors

    def __post_init__(self) -> None:
        for index, item in enumerate(self.items):
            held = item.action
            if isinstance(held, Hold) and not (
                0 <= held.until < index and isinstance(self.items[held.until].action, Work)
            ):
                raise ValueError(f"item {index} holds its stream until item {held.until}, which is no earlier work")


class Simulated(Record, frozen=True, kw_only=True):
    """What the simulation of a step yields.

    ``wall_us``: call → device idle; ``host_us``: call → return; ``device_us``: union of device activity; ``idle_us`` =
    T_wall − that.  ``synced_us`` and ``queued_us``: host time blocked in synchronisations of the step, and for room in
    the launch queue.  ``starts_us`` and ``ends_us``: of each item's work; None where it has none.
    """

    wall_us: float
    host_us: float
    device_us: float
    idle_us: float
    synced_us: float
    queued_us: float
    starts_us: list[float | None]
    ends_us: list[float | None]


def launch_latency(t_sys_us: float, launch_us: float) -> float:
    """L, return of the launch call → kernel start: T_sys, which begins at its entry, less the call on an idle stream.

    0 where the call outlasts T_sys: no kernel starts before it is issued, and the item's own time is the longer.
    """
    return max(0.0, t_sys_us - launch_us)


def kernel_gap(period_us: Percentiles, null_us: float) -> float:
    """g: un-instrumented period of null kernels that queue behind one another, less a null kernel's traced duration.

    So defined, traced durations and g add up to un-instrumented time, whatever tracing adds to a duration.  Nodes of a
    CUDA graph overlap: on an H200 a null kernel takes 0.54 µs as traced and 0.485 µs a node (2026-11-23).
    """
    return period_us.p50 - null_us


def sync_return(returned_us: Percentiles, round_trip_us: Percentiles) -> float:
    """s: the host sees the last kernel's flag → the synchronisation returned, plus the flag's way to the host."""
    return returned_us.p50 + flag_way(round_trip_us)


class _Costs(NamedTuple):
    """Microseconds per item: host, inside the launch call, launch call entry → start, gap before, on the device, sync
    return; of the synchronisation after the step, its return, and the call on an idle device."""

    ft: list[float]
    ct: list[float]
    call: list[float]
    ready: list[float]
    gap: list[float]
    device: list[float]
    back: list[float]
    last: float
    idle: float


class _Group(NamedTuple):
    """Items whose host time, and pieces (microseconds, count) per item whose device time, belong together."""

    hosts: list[int]
    pieces: dict[int, tuple[float, int]]


class Simulator:
    """Runs one timeline, whole or without a part of it."""

    def __init__(self, timeline: Timeline) -> None:
        self._items, self._floors = timeline.items, timeline.floors
        items, floors = self._items, self._floors
        works = [item.action if isinstance(item.action, Work) else None for item in items]
        streams = {stream: index for index, stream in enumerate(dict.fromkeys(work.stream for work in works if work))}
        self._kinds = [_kind(item) for item in items]
        self._streams = [_ALL if (s := _stream(item)) is None else streams.get(s, _UNUSED) for item in items]
        self._until = [item.action.until if isinstance(item.action, Hold) else 0 for item in items]
        self._count = len(streams)
        self._costs = _Costs(
            ft=[item.ft_us for item in items],
            ct=[item.ct_us for item in items],
            call=[item.launch_us for item in items],
            ready=[_ready(item, floors) for item in items],
            gap=[floors.gap_us if work else 0.0 for work in works],
            device=[_device(work, floors) if work else 0.0 for work in works],
            back=[_back(item, floors) for item in items],
            last=floors.sync_us,
            idle=floors.sync_us if floors.idle_sync_us is None else floors.idle_sync_us,
        )
        self._whole = self._run(self._costs)

    def simulated(self) -> Simulated:
        """The whole step."""
        run = self._whole
        busy = self._busy(run.starts)
        return Simulated(
            wall_us=run.wall, host_us=run.host, device_us=busy, idle_us=run.wall - busy, synced_us=run.synced,
            queued_us=run.queued, starts_us=run.starts, ends_us=run.ends,
        )  # fmt: skip

    def naive_us(self) -> float:
        """The model without a timeline: max(host time, device time) + s."""
        host = sum(map(sum, zip(self._costs.ft, self._costs.ct, self._costs.call, strict=True)))
        return max(host, self._busy(self._whole.starts)) + self._costs.last

    def wall_without(self, terms: Iterable[Term]) -> float:
        """T_wall with these terms at 0.

        ``kt``: launch calls and the latency behind them.  ``sync``: what synchronisations take to return, not the
        waiting.  ``device``: kernels, copies and fills, and the gaps between them.
        """
        costs, nothing = self._costs, [0.0] * len(self._items)
        for term in terms:
            if term == "ft":
                costs = costs._replace(ft=nothing)
            elif term == "ct":
                costs = costs._replace(ct=nothing)
            elif term == "kt":
                costs = costs._replace(call=nothing, ready=nothing)
            elif term == "sync":
                costs = costs._replace(back=nothing, last=0.0, idle=0.0)
            else:
                costs = costs._replace(gap=nothing, device=nothing)
        return self._run(costs).wall

    def exposed(self) -> dict[Term, float]:
        """Exposed cost of each term: T_wall − T_wall with that term alone at 0.  They do not add up to anything."""
        return {term: self._whole.wall - self.wall_without((term,)) for term in WATERFALL}

    def waterfall(self, order: Sequence[Term] = WATERFALL) -> dict[Term, float]:
        """What T_wall loses as the terms are removed one after the other in ``order``: the sum is T_wall."""
        left = [self._whole.wall, *(self.wall_without(order[: n + 1]) for n in range(len(order)))]
        return {term: left[n] - left[n + 1] for n, term in enumerate(order)}

    def families(self) -> list[ExposedCost]:
        """Every family's host and device time, raw and exposed; the dearest exposed first."""
        groups = self._groups(lambda item, piece: item.family if piece is None else piece.family)
        return _ranked(self._cost(group, name, None) for name, group in groups.items())

    def lines(self, limit: int) -> list[ExposedCost]:
        """The same of the author's ``limit`` lines with the largest raw times, each named by its families."""
        groups = self._groups(lambda item, piece: item.source)
        top = sorted(groups.items(), key=lambda pair: sum(self._raw(pair[1])), reverse=True)[:limit]
        return _ranked(self._cost(group, self._names(group), line) for line, group in top)

    def _groups(self, key: Callable[[Item, Piece | None], T | None]) -> dict[T, _Group]:
        """Items by the key of their host time, pieces by their own; what has no key is in no group."""
        hosts: dict[T, list[int]] = collections.defaultdict(list)
        pieces: dict[T, dict[int, tuple[float, int]]] = collections.defaultdict(dict)
        for index, item in enumerate(self._items):
            if (own := key(item, None)) is not None:
                hosts[own].append(index)
            for piece in item.action.pieces if isinstance(item.action, Work) else ():
                if (own := key(item, piece)) is not None:
                    us, count = pieces[own].get(index, (0.0, 0))
                    pieces[own][index] = (us + piece.us, count + 1)
        return {name: _Group(hosts[name], pieces[name]) for name in {**hosts, **pieces}}

    def _names(self, group: _Group) -> str:
        return ", ".join(dict.fromkeys(self._items[index].family for index in group.hosts))

    def _raw(self, group: _Group) -> tuple[float, float]:
        costs = self._costs
        return (
            sum(costs.ft[i] + costs.ct[i] + costs.call[i] for i in group.hosts),
            sum(us for us, _ in group.pieces.values()),
        )

    def _cost(self, group: _Group, name: str, source: SourceLine | None) -> ExposedCost:
        host, device = self._without_host(self._costs, group.hosts), self._without_pieces(self._costs, group.pieces)
        raw_host, raw_device = self._raw(group)
        wall = self._whole.wall
        return ExposedCost(
            name=name,
            source=source,
            host_us=raw_host,
            device_us=raw_device,
            exposed_host_us=wall - self._run(host).wall,
            exposed_device_us=wall - self._run(device).wall,
            exposed_us=wall - self._run(self._without_pieces(host, group.pieces)).wall,
        )

    def _without_host(self, costs: _Costs, hosts: Iterable[int]) -> _Costs:
        ft, ct, call, ready, back = (list(us) for us in (costs.ft, costs.ct, costs.call, costs.ready, costs.back))
        for index in hosts:
            ft[index] = ct[index] = call[index] = ready[index] = back[index] = 0.0
        return costs._replace(ft=ft, ct=ct, call=call, ready=ready, back=back)

    def _without_pieces(self, costs: _Costs, pieces: Mapping[int, tuple[float, int]]) -> _Costs:
        device, gap = list(costs.device), list(costs.gap)
        for index, (us, count) in pieces.items():
            work = self._items[index].action
            assert isinstance(work, Work)
            if count == len(work.pieces):
                device[index] = gap[index] = 0.0
            else:  # a graph without some of its nodes has as many gaps fewer
                device[index] -= max(0.0, us + count * self._floors.graph_gap_us)
        return costs._replace(device=device, gap=gap)

    def _busy(self, starts: Sequence[float | None]) -> float:
        """Length of the union of all pieces on the device; the gaps inside a graph are none of it."""
        spans = []
        for item, start in zip(self._items, starts, strict=True):
            if isinstance(item.action, Work) and start is not None:
                spans += [(start + at, start + at + piece.us) for at, piece in placed(item.action, self._floors)]
        total, end = 0.0, 0.0
        for begin, stop in sorted(spans):
            if stop > end:
                total += stop - max(begin, end)
                end = stop
        return total

    def _run(self, costs: _Costs) -> _Run:
        """The recurrence.  One pass over the items; every time only ever enters a sum or a maximum, so that none of
        them can make the step shorter by growing."""
        depth = self._floors.queue_depth
        ended: list[list[float]] = [[] for _ in range(self._count)]  # per stream, in issue order: ever later
        held = [0.0] * self._count
        starts: list[float | None] = []
        ends: list[float | None] = []
        host = synced = queued = 0.0
        rows = zip(self._kinds, self._streams, self._until, *costs[:-2], strict=True)
        for kind, stream, until, ft, ct, call, ready, gap, device, back in rows:
            host += ft + ct
            start = end = None
            if kind == _WORK:
                before = ended[stream]
                if len(before) >= depth and before[-depth] > host:
                    queued += before[-depth] - host
                    host = before[-depth]
                start = max(host + ready, held[stream], before[-1] + gap if before else 0.0)
                end = start + device
                before.append(end)
                host += call
            elif kind == _SYNC:
                awaited = ended if stream == _ALL else ended[stream : stream + 1] if stream >= 0 else []
                idle = max((one[-1] for one in awaited if one), default=0.0)
                if idle > host:
                    synced += idle - host
                    host = idle
                host += back
            elif kind == _HOLD and stream >= 0:
                held[stream] = max(held[stream], ends[until] or 0.0)
            starts.append(start)
            ends.append(end)
        idle = max((one[-1] for one in ended if one), default=0.0)
        return _Run(max(host + costs.idle, idle + costs.last), host, synced, queued, starts, ends)


class _Run(NamedTuple):
    wall: float
    host: float
    synced: float
    queued: float
    starts: list[float | None]
    ends: list[float | None]


def simulate(timeline: Timeline) -> Simulated:
    """What the step takes, idles, and where its host blocks.  Linear in its items, but for the sort of the union."""
    return Simulator(timeline).simulated()


def _ready(item: Item, floors: Floors) -> float:
    """From the entry of the item's launch call until its work may start."""
    if not isinstance(item.action, Work):
        return 0.0
    first = item.action.first_node_us
    return item.launch_us + floors.latency_us if first is None else first


def _back(item: Item, floors: Floors) -> float:
    """From the end of the device's work until the item's synchronisation has returned."""
    if not isinstance(item.action, Sync):
        return 0.0
    return floors.sync_us if item.action.back_us is None else item.action.back_us


def placed(work: Work, floors: Floors) -> Iterator[tuple[float, Piece]]:
    """The work's pieces, each with its start after that of the first, in microseconds: none starts before another that
    comes earlier."""
    at = 0.0
    for piece in work.pieces:
        yield at, piece
        at += max(0.0, piece.us + floors.graph_gap_us)


def _device(work: Work, floors: Floors) -> float:
    """From the start of the work's first piece until all have ended."""
    return max(at + piece.us for at, piece in placed(work, floors))


def _stream(item: Item) -> int | None:
    return None if item.action is None else item.action.stream


def _kind(item: Item) -> int:
    kinds = ((Work, _WORK), (Sync, _SYNC), (Hold, _HOLD))
    return next((kind for type_, kind in kinds if isinstance(item.action, type_)), _NOTHING)


def _ranked(costs: Iterable[ExposedCost]) -> list[ExposedCost]:
    return sorted(costs, key=lambda cost: cost.exposed_us, reverse=True)
