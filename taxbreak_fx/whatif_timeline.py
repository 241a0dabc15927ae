"""One thing about a step changed in its timeline: no guards, CUDA graphs, a faster host.  Pure; microseconds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from taxbreak_fx.breakdown_timeline import AROUND, GRAPH
from taxbreak_fx.record import Record
from taxbreak_fx.timeline import Hold, Item, Sync, Timeline, Work


class GraphPoint(NamedTuple):
    """A measured graph launch: its nodes, host time in the call, and the call's entry → start of its first node."""

    nodes: int
    host_us: float
    first_node_us: float


class GraphLaunches(NamedTuple):
    """Graph launches and where they were seen."""

    points: Sequence[GraphPoint]
    source: str


class GraphCost(Record, frozen=True, kw_only=True):
    """What a graph launch costs here against its nodes: that of one kernel's launch, and so much for each node more.

    ``source`` says in words what that rests on.
    """

    lone_host_us: float
    lone_first_us: float
    node_host_us: float
    node_first_us: float
    source: str

    def of(self, nodes: int) -> GraphPoint:
        """A graph of so many nodes."""
        more = nodes - 1
        return GraphPoint(
            nodes, self.lone_host_us + more * self.node_host_us, self.lone_first_us + more * self.node_first_us
        )


def graph_points(timeline: Timeline) -> list[GraphPoint]:
    """The graph launches of a step."""
    return [
        GraphPoint(len(item.action.pieces), item.launch_us, item.action.first_node_us or 0.0)
        for item in timeline.items
        if isinstance(item.action, Work) and item.action.kind == "graph"
    ]


def graph_cost(launch_us: float, latency_us: float, points: Sequence[GraphPoint], source: str) -> GraphCost:
    """Least squares through the cost of one kernel's launch (``launch_us`` in the call, its start ``latency_us``
    later), which stands for a graph of one node; a slope below zero, which only noise makes, is none.

    Raises ``ValueError`` without points.
    """
    if not points:
        raise ValueError("no graph launch was measured")
    weight = sum((point.nodes - 1) ** 2 for point in points)

    def slope(lone_us: float, times: Iterable[float]) -> float:
        moment = sum((p.nodes - 1) * (us - lone_us) for p, us in zip(points, times, strict=True))
        return max(0.0, moment / weight) if weight else 0.0

    first = launch_us + latency_us
    return GraphCost(
        lone_host_us=launch_us,
        lone_first_us=first,
        node_host_us=slope(launch_us, (point.host_us for point in points)),
        node_first_us=slope(first, (point.first_node_us for point in points)),
        source=source,
    )


def without_guards(timeline: Timeline, guards_us: float) -> Timeline:
    """The step without ``guards_us`` of ΔFT where guards are checked: around compiled graphs, before work that follows.

    Each of those places loses the same share; together at most what they hold.
    """
    last = max((index for index, item in enumerate(timeline.items) if isinstance(item.action, Work)), default=-1)
    places = {index for index, item in enumerate(timeline.items[: last + 1]) if item.family == AROUND and item.ft_us}
    held = sum(timeline.items[index].ft_us for index in places)
    share = min(1.0, guards_us / held) if held else 0.0
    items = tuple(
        msgspec.structs.replace(item, ft_us=item.ft_us * (1 - share)) if index in places else item
        for index, item in enumerate(timeline.items)
    )
    return msgspec.structs.replace(timeline, items=items)


def as_graphs(timeline: Timeline, cost: GraphCost) -> Timeline | str:
    """The step with each run of work between what surrounds compiled graphs as one graph launch, or why it cannot be.

    A step that was not compiled is one run.  A run of one launch stays as it is: a graph of it would save nothing.
    """
    if graph_points(timeline):
        return "the step launches CUDA graphs already"
    items: list[Item] = []
    moved: dict[int, int] = {}  # where the work of an item is now
    graphed = False
    for around, run in itertools.groupby(enumerate(timeline.items), lambda pair: pair[1].family == AROUND):
        pairs = list(run)
        works = [(index, item.action) for index, item in pairs if isinstance(item.action, Work)]
        if around or len(works) < 2:
            moved |= {index: len(items) + offset for offset, (index, _) in enumerate(pairs)}
            items += [item for _, item in pairs]
            continue
        syncs = sum(isinstance(item.action, Sync) for _, item in pairs)
        if syncs:
            return f"a CUDA graph cannot hold a wait of the host, and the step waits {syncs} times between its launches"
        moved |= {index: len(items) for index, _ in works}
        items.append(_graph([work for _, work in works], cost))
        graphed = True
    if not graphed:
        return "the step makes no two launches that a graph could hold"
    return msgspec.structs.replace(timeline, items=tuple(_held(items, moved)))


def _graph(works: Sequence[Work], cost: GraphCost) -> Item:
    pieces = tuple(piece for work in works for piece in work.pieces)
    point = cost.of(len(pieces))
    made = Work(kind="graph", stream=works[0].stream, pieces=pieces, first_node_us=point.first_node_us)
    return Item(launch_us=point.host_us, action=made, family=GRAPH)


def _held(items: Iterable[Item], moved: dict[int, int]) -> Iterator[Item]:
    """``items`` with each ``Hold`` on the item that its work is in now."""
    for item in items:
        if isinstance(item.action, Hold):
            action = msgspec.structs.replace(item.action, until=moved[item.action.until])
            item = msgspec.structs.replace(item, action=action)
        yield item


def on_faster_host(timeline: Timeline, speed: float) -> Timeline:
    """The step on a host ``speed`` times as fast: every item's ΔFT, ΔCT and launch call takes 1/``speed`` of its time.

    So does what a graph launch takes until its first node starts, above L: until then the host prepares it.  Device
    work, L, g and the returns of synchronisations stay: those wait for the device and the bus.  Raises ``ValueError``
    unless ``speed`` is above zero.
    """
    if not speed > 0:
        raise ValueError(f"a host cannot be {speed:g} times as fast")
    latency = timeline.floors.latency_us

    def faster(item: Item) -> Item:
        action = item.action
        if isinstance(action, Work) and action.first_node_us is not None:
            action = msgspec.structs.replace(action, first_node_us=sped_up(action.first_node_us, latency, speed))
        return msgspec.structs.replace(
            item,
            ft_us=item.ft_us / speed,
            ct_us=item.ct_us / speed,
            launch_us=item.launch_us / speed,
            action=action,
        )

    return msgspec.structs.replace(timeline, items=tuple(faster(item) for item in timeline.items))


def sped_up(floor_us: float, latency_us: float, speed: float) -> float:
    """A launch's way to its start on a host ``speed`` times as fast: what is above L is the host's."""
    return floor_us - max(0.0, floor_us - latency_us) * (1 - 1 / speed)
