"""What fusing a group of ops would take off the wall clock: the review's timeline of the eager step, with the group's
launches made one, simulated again.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import msgspec

from taxbreak_fx.fusion import Exposed, FusionBytes, launching
from taxbreak_fx.model import Variant
from taxbreak_fx.step_graph import HostCost, StepGraph
from taxbreak_fx.timeline import Hold, Item, Piece, Timeline, Work, simulate
from taxbreak_fx.timeline_store import restored
from taxbreak_fx.whatif_prices import place_of

Line = tuple[str, int]


class GroupsExposed:
    """Answers for groups of ops of ``graph``, by the timeline of ``variant``; microseconds of T_wall per step.

    An op and its launches meet by the author's line: the ops of a line, in issue order, take the kernel launches that
    the timeline has there, each as many as it launches.  Lines where these numbers differ have no answer.

    Of a group all launches but the last go, with their host time; the last one's ΔFT becomes ``kernel``'s, its library
    time goes.  The fused kernel takes the time that the members' kernels took together, less the share of their traffic
    that fusing saves.  Views, and Python between the calls, stay: this is a lower bound for a host-bound step.
    """

    def __init__(self, graph: StepGraph, variant: Variant, kernel: HostCost | None) -> None:
        assert variant.timeline is not None
        self._graph, self._kernel = graph, kernel
        self._timeline = restored(variant.timeline)
        self._wall_us = simulate(self._timeline).wall_us
        self._items = _launches_of(graph, self._timeline)

    def __call__(self, groups: Sequence[FusionBytes]) -> float | None:
        """T_wall − T_wall with all ``groups`` fused at once; None: a launch of one of their ops is not known."""
        items = list(self._timeline.items)
        for ops, saved_bytes in groups:
            members = [op for op in ops if launching(self._graph.ops[op])]
            if not members or any(op not in self._items for op in members):
                return None
            indices = sorted(index for op in members for index in self._items[op])
            moved = sum(self._graph.ops[op].read_bytes + self._graph.ops[op].written_bytes for op in members)
            self._fuse(items, indices, 1.0 - min(1.0, saved_bytes / moved) if moved else 1.0)
        return self._wall_us - simulate(msgspec.structs.replace(self._timeline, items=tuple(items))).wall_us

    def _fuse(self, items: list[Item], indices: Sequence[int], share: float) -> None:
        works = [_work(items[index]) for index in indices]
        device_us = share * sum(piece.us for work in works for piece in work.pieces)
        least = min(items[index].ft_us for index in indices)
        for index in indices[:-1]:
            items[index] = Item(family=items[index].family, source=items[index].source)
        last = items[indices[-1]]
        fused = Work(kind="kernel", stream=works[-1].stream, pieces=(Piece(us=device_us, family=last.family),))
        items[indices[-1]] = msgspec.structs.replace(
            last, ft_us=least if self._kernel is None else self._kernel.ft_us, ct_us=0.0, action=fused
        )


def groups_exposed(graph: StepGraph, variant: Variant | None, kernel: HostCost | None) -> Exposed | None:
    """``GroupsExposed``, or None for a variant without a timeline."""
    if variant is None or variant.timeline is None:
        return None
    return GroupsExposed(graph, variant, kernel)


def _work(item: Item) -> Work:
    assert isinstance(item.action, Work)
    return item.action


def _launches_of(graph: StepGraph, timeline: Timeline) -> dict[int, list[int]]:
    """Op → the items that launch its kernels, for the ops of lines where ops and timeline agree on the launches."""
    awaited = {item.action.until for item in timeline.items if isinstance(item.action, Hold)}  # must stay where it is
    at: dict[Line, list[int]] = collections.defaultdict(list)
    for index, item in enumerate(timeline.items):
        place = place_of(item.source, None)
        if place is not None and isinstance(item.action, Work) and item.action.kind == "kernel":
            at[place[:2]].append(index)
    ops: dict[Line, list[int]] = collections.defaultdict(list)
    for number, op in enumerate(graph.ops):
        place = place_of(op.source, None)
        if place is not None and launching(op):
            ops[place[:2]].append(number)
    found: dict[int, list[int]] = {}
    for line, numbers in ops.items():
        launches = [graph.ops[number].launches for number in numbers]
        if None in launches or sum(count or 0 for count in launches) != len(at[line]):
            continue
        items = iter(at[line])
        for number, count in zip(numbers, launches, strict=True):
            found[number] = [next(items) for _ in range(count or 0)]
    return {number: indices for number, indices in found.items() if awaited.isdisjoint(indices)}
