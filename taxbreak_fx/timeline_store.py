"""Between the timeline that is simulated and the record of it in a review (``step_timeline``), both ways."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import TypeVar

from taxbreak_fx.record import SourceLine
from taxbreak_fx.step_timeline import (
    HoldRow,
    HostRow,
    KernelRow,
    LibraryRow,
    Place,
    Row,
    StepTimeline,
    SyncRow,
    WorkRow,
)
from taxbreak_fx.timeline import Floors, Hold, Item, Piece, Sync, Timeline, Work

PER_US = 100  # rows hold hundredths of a microsecond
K = TypeVar("K", bound=Hashable)


class _Rounder:
    """Rounds the numbers of a column so that what one is given too much or too little, the next makes up for."""

    def __init__(self) -> None:
        self._exact: dict[Hashable, float] = collections.defaultdict(float)
        self._given: dict[Hashable, int] = collections.defaultdict(int)

    def __call__(self, column: Hashable, us: float) -> float:
        self._exact[column] += us
        steps = round(self._exact[column] * PER_US) - self._given[column]
        self._given[column] += steps
        return steps / PER_US


class _Table(dict[K, int]):
    """Numbers keys in the order in which they are first asked for."""

    def __missing__(self, key: K) -> int:
        self[key] = len(self)
        return self[key]


def stored(timeline: Timeline) -> StepTimeline:
    """``timeline`` in rows, its times rounded as ``StepTimeline`` says; one that was restored stays as it is."""
    families: _Table[str] = _Table()
    files: _Table[str] = _Table()
    places: _Table[tuple[int, int | None, int | None]] = _Table()
    rounded = _Rounder()
    rows = []
    for item in timeline.items:
        source = item.source
        where = (None, None) if source is None else (files[source.file], source.line)
        place = places[(families[item.family], *where)]
        rows.append(_row(item, place, families, rounded))
    floors = timeline.floors
    return StepTimeline(
        families=list(families),
        files=list(files),
        places=[Place(family=family, file=file, line=line) for family, file, line in places],
        rows=rows,
        latency_us=floors.latency_us,
        gap_us=floors.gap_us,
        graph_gap_us=floors.graph_gap_us,
        sync_us=floors.sync_us,
        idle_sync_us=floors.idle_sync_us,
        queue_depth=floors.queue_depth,
    )


def _row(item: Item, place: int, families: _Table[str], rounded: _Rounder) -> Row:
    ft, ct, action = rounded("ft", item.ft_us), rounded("ct", item.ct_us), item.action
    if action is None:
        return LibraryRow(place=place, ft_us=ft, ct_us=ct) if ct else HostRow(place=place, ft_us=ft)
    if isinstance(action, Sync):
        back = None if action.back_us is None else rounded("back", action.back_us)
        return SyncRow(place=place, ft_us=ft, ct_us=ct, stream=action.stream, back_us=back)
    if isinstance(action, Hold):
        return HoldRow(place=place, ft_us=ft, ct_us=ct, stream=action.stream, until=action.until)
    call = rounded("launch", item.launch_us)
    device = [rounded(action.stream, piece.us) for piece in action.pieces]
    if action.kind == "kernel" and action.pieces[0].family == item.family:
        return KernelRow(
            place=place, ft_us=ft, ct_us=ct, launch_us=call, stream=action.stream, device_us=device[0]
        )  # fmt: skip
    first = None if action.first_node_us is None else rounded("first node", action.first_node_us)
    pieces = [(families[piece.family], us) for piece, us in zip(action.pieces, device, strict=True)]
    return WorkRow(
        place=place, ft_us=ft, ct_us=ct, launch_us=call, stream=action.stream, kind=action.kind, first_node_us=first,
        pieces=pieces,
    )  # fmt: skip


def restored(step: StepTimeline) -> Timeline:
    """The timeline that ``step`` records."""
    return Timeline(
        items=tuple(_item(row, step) for row in step.rows),
        floors=Floors(
            latency_us=step.latency_us,
            gap_us=step.gap_us,
            graph_gap_us=step.graph_gap_us,
            sync_us=step.sync_us,
            idle_sync_us=step.idle_sync_us,
            queue_depth=step.queue_depth,
        ),
    )


def _item(row: Row, step: StepTimeline) -> Item:
    place = step.places[row.place]
    known = place.file is not None and place.line is not None
    family, launch_us = step.families[place.family], 0.0
    action: Work | Sync | Hold | None = None
    if isinstance(row, KernelRow):
        launch_us = row.launch_us
        action = Work(kind="kernel", stream=row.stream, pieces=(Piece(us=row.device_us, family=family),))
    elif isinstance(row, WorkRow):
        launch_us = row.launch_us
        pieces = tuple(Piece(us=us, family=step.families[index]) for index, us in row.pieces)
        action = Work(kind=row.kind, stream=row.stream, pieces=pieces, first_node_us=row.first_node_us)
    elif isinstance(row, SyncRow):
        action = Sync(stream=row.stream, back_us=row.back_us)
    elif isinstance(row, HoldRow):
        action = Hold(stream=row.stream, until=row.until)
    return Item(
        ft_us=row.ft_us,
        ct_us=row.ct_us,
        launch_us=launch_us,
        action=action,
        family=family,
        source=SourceLine(file=step.files[place.file or 0], line=place.line or 0) if known else None,
    )
