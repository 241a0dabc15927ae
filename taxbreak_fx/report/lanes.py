"""A step's timeline as bars: what the host does when, and each piece of work on each of the device's streams."""

from __future__ import annotations

import collections
from typing import Literal, NamedTuple

from taxbreak_fx.model import Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.timeline import Simulated, Sync, Timeline, Work, placed, simulate

HostTerm = Literal["ft", "ct", "launch", "blocked", "sync"]
HOST_TERMS: dict[HostTerm, str] = {
    "ft": "ΔFT", "ct": "ΔCT", "launch": "launch call", "blocked": "blocked on the device", "sync": "sync return",
}  # fmt: skip


def no_timeline(variant: Variant) -> str:
    """Why a variant without a timeline has none."""
    if variant.status != "ok":
        return variant.reason or variant.status
    exposed = variant.exposed
    if exposed is not None and exposed.wall_us is None:
        return exposed.unmeasured["wall_us"]
    return "the version that made this review kept no timeline"


class HostSpan(NamedTuple):
    """Host time of one kind at one place; microseconds from the start of the step."""

    begin_us: float
    us: float
    term: HostTerm
    family: str
    source: SourceLine | None


class DeviceSpan(NamedTuple):
    """One piece of work on a stream; ``launch`` is the index of the host span of its launch call."""

    begin_us: float
    us: float
    stream: int
    family: str
    kind: Literal["kernel", "memop", "graph"]
    launch: int


class Lanes(NamedTuple):
    """A simulated step: its bars in the order of their begin, per lane, and its ends."""

    run: Simulated
    host: list[HostSpan]
    device: list[DeviceSpan]


def lanes(timeline: Timeline) -> Lanes:
    """The bars of ``timeline`` as it is simulated.

    The simulation says when the device works; where the host blocks follows from that: in a synchronisation until the
    streams that it waits for are idle, and before a launch until its stream's queue has room.  The host's bars follow
    one another without a gap: the last one ends at ``run.host_us``.
    """
    run = simulate(timeline)
    host: list[HostSpan] = []
    device: list[DeviceSpan] = []
    ended: dict[int, list[float]] = collections.defaultdict(list)  # per stream, in issue order
    now, floors = 0.0, timeline.floors
    for item, start, end in zip(timeline.items, run.starts_us, run.ends_us, strict=True):
        action = item.action
        spent: list[tuple[HostTerm, float]] = [("ft", item.ft_us), ("ct", item.ct_us)]
        entered = now + item.ft_us + item.ct_us
        if isinstance(action, Work):
            before = ended[action.stream]
            room = before[-floors.queue_depth] if len(before) >= floors.queue_depth else 0.0
            spent += [("blocked", room - entered), ("launch", item.launch_us)]
        elif isinstance(action, Sync):
            awaited = ended.values() if action.stream is None else [ended[action.stream]]
            idle = max((one[-1] for one in awaited if one), default=0.0)
            spent += [("blocked", idle - entered), ("sync", floors.sync_us)]
        for term, us in spent:
            # A launch call of no length is kept: it is where an arrow to the device begins.
            if us > 0 or term == "launch":
                host.append(HostSpan(now, us, term, item.family, item.source))
                now += us
        if isinstance(action, Work) and start is not None and end is not None:
            ended[action.stream].append(end)
            for at, piece in placed(action, floors):
                span = DeviceSpan(start + at, piece.us, action.stream, piece.family, action.kind, len(host) - 1)
                device.append(span)
    return Lanes(run, host, device)
