"""A predicted step laid out: its calls, what lies between them, and its graph launches, in issue order.

The layout follows that of measured steps (``breakdown_timeline``): a call's launches stand in its host time, the glue
between calls is spread evenly, and what surrounds compiled graphs lies before them for the most part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from taxbreak_fx.breakdown_timeline import AROUND, BETWEEN, GRAPH, RETURN_SHARE
from taxbreak_fx.record import Record, SourceLine
from taxbreak_fx.timeline import Floors, Item, Piece, Sync, Timeline, Work
from taxbreak_fx.variant_record import Classification

GRAPH_LAUNCH = Classification(
    family=GRAPH,
    library="CUDA",
    i_lib=False,
    code="graph_launch",
    reason="one launch call for a whole captured graph",
)


class Launch(Record, frozen=True, kw_only=True):
    """One kernel, copy or fill: ``us`` on the device, ``launch_us`` in its launch call (0 for copies and fills, whose
    call is part of ΔFT)."""

    kind: Literal["kernel", "memop"]
    us: float
    launch_us: float


class Place(Record, frozen=True, kw_only=True):
    """One call of the step, by its name and kind; host time in microseconds, without its launch calls.

    ``part``: of ΔFT that its time belongs to.  ``waits``: the host then waits for the device; ``ft_us`` holds what that
    takes on an idle one.  ``shown``: it dispatches
    something; Python alone has no row of its own.
    """

    op: str
    kind: Classification
    source: SourceLine | None = None
    module_path: str | None = None
    ft_us: float
    ct_us: float = 0.0
    launches: tuple[Launch, ...] = ()
    waits: bool = False
    part: str
    shown: bool = True


class Surrounding(Record, frozen=True, kw_only=True):
    """Host time outside all calls, all of it ΔFT; ``around``: around a compiled graph, else between calls."""

    us: float
    part: str
    around: bool = False


class GraphLaunch(Record, frozen=True, kw_only=True):
    """A CUDA graph of the launches of ``held``, whose host times are not spent: ``host_us`` in the replay call, and
    ``first_node_us`` from its entry to the first node's start."""

    held: tuple[Place, ...]
    host_us: float
    first_node_us: float

    @property
    def nodes(self) -> tuple[Launch, ...]:
        """What the graph runs, in order."""
        return tuple(launch for place in self.held for launch in place.launches)


Entry = Place | Surrounding | GraphLaunch


class Layout(Record, frozen=True, kw_only=True):
    """One variant of a predicted step, in issue order; ``notes``: what its reader should know."""

    name: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def places(self) -> list[Place]:
        """The calls that spend host time."""
        return [entry for entry in self.entries if isinstance(entry, Place)]

    @property
    def graphs(self) -> list[GraphLaunch]:
        """The graph launches."""
        return [entry for entry in self.entries if isinstance(entry, GraphLaunch)]


def spread(places: Sequence[Place], us: float, part: str) -> Iterator[Entry]:
    """``places`` with host time evenly before each of them and behind the last."""
    each = us / (len(places) + 1)
    for place in places:
        yield Surrounding(us=each, part=part)
        yield place
    yield Surrounding(us=each, part=part)


def timeline_of(layout: Layout, floors: Floors) -> Timeline:
    """What the simulator runs; one stream."""
    return Timeline(items=tuple(item for entry in layout.entries for item in _items(entry, floors)), floors=floors)


def _items(entry: Entry, floors: Floors) -> Iterator[Item]:
    if isinstance(entry, Surrounding):
        yield Item(ft_us=entry.us, family=AROUND if entry.around else BETWEEN)
    elif isinstance(entry, GraphLaunch):
        pieces = tuple(
            Piece(us=launch.us, family=place.kind.family) for place in entry.held for launch in place.launches
        )
        work = Work(kind="graph", stream=0, pieces=pieces, first_node_us=entry.first_node_us)
        yield Item(launch_us=entry.host_us, action=work, family=GRAPH)
    else:
        yield from _place_items(entry, floors)


def _place_items(place: Place, floors: Floors) -> Iterator[Item]:
    """A call that waits was measured with the wait on an idle device in its ΔFT: L, its copy, and the return.  The
    simulation makes the host wait for these, so that they are taken out, as of measured steps; and the return takes no
    longer than the call was measured to take, even where that is less than s, which is of a whole synchronisation."""
    family = place.kind.family if place.shown else BETWEEN
    copy = floors.latency_us + sum(launch.us for launch in place.launches[-1:])
    back = min(floors.sync_us, max(0.0, place.ft_us - copy))
    ft = max(0.0, place.ft_us - copy - back) if place.waits else place.ft_us
    before = (1 - RETURN_SHARE) / len(place.launches) if place.launches else 0.0
    for launch in place.launches:
        yield Item(
            ft_us=ft * before,
            ct_us=place.ct_us * before,
            launch_us=launch.launch_us,
            action=Work(kind=launch.kind, stream=0, pieces=(Piece(us=launch.us, family=family),)),
            family=family,
            source=place.source,
        )
    if place.waits:
        yield Item(action=Sync(stream=0, back_us=back), family=family, source=place.source)
    behind = 1 - before * len(place.launches)
    yield Item(ft_us=ft * behind, ct_us=place.ct_us * behind, family=family, source=place.source)
