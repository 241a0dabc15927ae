"""A step's timeline as a review keeps it: tables of names, one short row per item, so that it can run again.

``timeline_store`` makes it from a ``timeline.Timeline`` and back; nothing else needs to read the rows.
"""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.record import Record


class Place(Record, frozen=True, kw_only=True, array_like=True):
    """Where host time belongs: index into ``families``; index into ``files`` and a line, null where none is known."""

    family: int
    file: int | None
    line: int | None


class HostRow(Record, frozen=True, kw_only=True, array_like=True, tag=0):
    """Host time at a place, all of it ΔFT: most rows of an eager step."""

    place: int
    ft_us: float

    @property
    def ct_us(self) -> float:
        """None of it is ΔCT."""
        return 0.0


class LibraryRow(Record, frozen=True, kw_only=True, array_like=True, tag=5):
    """Host time at a place: ΔFT, then ΔCT."""

    place: int
    ft_us: float
    ct_us: float


class KernelRow(Record, frozen=True, kw_only=True, array_like=True, tag=1):
    """Host time, and the launch of one kernel of the place's family: time in the call, stream, time on the device."""

    place: int
    ft_us: float
    ct_us: float
    launch_us: float
    stream: int
    device_us: float


class WorkRow(Record, frozen=True, kw_only=True, array_like=True, tag=2):
    """Host time, and any other launch.  ``pieces``: (index into ``families``, time on the device), in order."""

    place: int
    ft_us: float
    ct_us: float
    launch_us: float
    stream: int
    kind: Literal["kernel", "memop", "graph"]
    first_node_us: float | None
    pieces: list[tuple[int, float]]


class SyncRow(Record, frozen=True, kw_only=True, array_like=True, tag=3):
    """Host time, and a wait for one stream, or for all (null); ``back_us``: what it takes to return, null: s."""

    place: int
    ft_us: float
    ct_us: float
    stream: int | None
    back_us: float | None = None


class HoldRow(Record, frozen=True, kw_only=True, array_like=True, tag=4):
    """Host time, and an event: what is put on ``stream`` from here on waits for the work of row ``until``."""

    place: int
    ft_us: float
    ct_us: float
    stream: int
    until: int


Row = HostRow | LibraryRow | KernelRow | WorkRow | SyncRow | HoldRow


class StepTimeline(Record, frozen=True, kw_only=True):
    """The items of a step in issue order, and the machine's constants (as ``timeline.Floors`` has them); microseconds.

    Times are rounded to 0.01 µs, each column of host time and each stream with the remainder carried on to its next
    row: a sum over any rows that follow one another is within 0.01 µs of the unrounded one.

    Raises ``ValueError`` for an index that points nowhere, or a time below zero.
    """

    families: list[str]
    files: list[str]
    places: list[Place]
    rows: list[Row]
    latency_us: float
    gap_us: float
    graph_gap_us: float
    sync_us: float
    idle_sync_us: float | None
    queue_depth: int

    def __post_init__(self) -> None:
        for place in self.places:
            if (place.file is None) != (place.line is None):
                raise ValueError("timeline: a place has a file without a line, or a line without a file")
            self._check("family", place.family, len(self.families))
            self._check("file", place.file or 0, len(self.files) if place.file is not None else 1)
        for index, row in enumerate(self.rows):
            self._check("place", row.place, len(self.places))
            times = [row.ft_us, row.ct_us]
            if isinstance(row, KernelRow):
                times += [row.launch_us, row.device_us]
            elif isinstance(row, WorkRow):
                times += [row.launch_us, row.first_node_us or 0.0, *(us for _, us in row.pieces)]
                if (row.kind == "graph") == (row.first_node_us is None) or not row.pieces:
                    raise ValueError(f"timeline: row {index} is no {row.kind} launch")
                if row.kind != "graph" and len(row.pieces) != 1:
                    raise ValueError(f"timeline: row {index} is a {row.kind} of {len(row.pieces)} pieces")
                for family, _ in row.pieces:
                    self._check("family", family, len(self.families))
            elif isinstance(row, SyncRow):
                times.append(row.back_us or 0.0)
            elif isinstance(row, HoldRow):
                self._check("row", row.until, index)
                if not isinstance(self.rows[row.until], KernelRow | WorkRow):
                    raise ValueError(f"timeline: row {index} waits for row {row.until}, which launches nothing")
            if min(times) < 0:
                raise ValueError(f"timeline: row {index} has a time below zero")
        floors = (self.latency_us, self.gap_us, self.sync_us, self.idle_sync_us or 0.0)
        if min(floors) < 0 or self.queue_depth < 1:
            raise ValueError("timeline: a constant of the machine is out of range")

    def _check(self, what: str, index: int, count: int) -> None:
        if not 0 <= index < count:
            raise ValueError(f"timeline: {what} {index} of {count}")
