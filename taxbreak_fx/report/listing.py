"""The author's files with what each line costs beside it, as data for the page.

A review names files; whoever made it chose the names.  So only Python files are read, and of no more than ``MAX_FILE``
bytes: a review from elsewhere cannot make a report carry a key or a password file away.
"""

from __future__ import annotations

import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import SourceLine, package_path
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import reference
from taxbreak_fx.report.findings import IN_LIBRARY, by_line
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.variant_record import Node

MAX_FILE = 1_000_000  # bytes
MAX_SHOWN = 500_000  # characters of source in one report
MAX_FILES, MAX_LISTED = 30, 300  # files, and lines of one that is absent
MAX_LINE, MAX_OPS = 400, 12  # characters of a line of source; ops named beside it
CONTEXT = 4  # lines around one that costs something; longer stretches between are folded
HEATS = 5


@dataclass
class Cost:
    """Sums of one line, per step; None: not known."""

    calls: int = 0
    launches: int | None = None
    host_us: float | None = None
    device_us: float | None = None
    exposed_us: float | None = None
    ops: dict[str, None] = field(default_factory=dict)
    findings: list[int] = field(default_factory=list)

    @property
    def rank_us(self) -> float:
        """What lines and files are ordered by: exposed time, else host time."""
        known = self.exposed_us if self.exposed_us is not None else self.host_us
        return known or 0.0


class Row(NamedTuple):
    """A line as shown: number, text, cells of the gutter if it costs anything, ops, heat (0 to 5), its findings."""

    number: int
    text: str
    cells: tuple[str, ...]
    ops: str
    heat: int
    findings: tuple[int, ...]


class Block(NamedTuple):
    """Lines that are shown or folded together."""

    folded: bool
    rows: list[Row]


class Listing(NamedTuple):
    """A file: its short name, what must be said about it, and its lines (only those with costs, when it is absent)."""

    name: str
    notes: list[str]
    blocks: list[Block]


HEAD = ("exposed", "host", "device", "launches", "calls")


def listings(review: Review, source: bool) -> tuple[str, list[Listing]]:
    """Which variant the costs are of, in words, and a listing per file, the dearest first.

    Without ``source`` no file is opened, and the listings hold numbers of lines only.
    """
    variant = _variant(review)
    costs = _costs(review, variant)
    files: dict[str, dict[int, Cost]] = {}
    for line, cost in costs.items():
        files.setdefault(line.file, {})[line.line] = cost
    ranked = sorted(files.items(), key=lambda pair: sum(c.rank_us for c in pair[1].values()), reverse=True)
    dearest = max((cost.rank_us for cost in costs.values()), default=0.0)
    left, found = MAX_SHOWN, []
    for file, lines in ranked[:MAX_FILES]:
        text = _read(file) if source else "the source was left out of this report on purpose"
        notes = [f"This file is {IN_LIBRARY}."] if package_path(file) is not None else []
        if isinstance(text, list) and sum(map(len, text)) > left:
            text = "there is no more room for source in this report"
        if isinstance(text, list):
            left -= sum(map(len, text))
            notes += _doubts(file, text, lines, review.machine.date)
            blocks = list(_blocks(text, lines, dearest))
        else:
            notes.append(plain(f"Only the lines that cost something are listed: {text}."))
            rows = [_row(number, "", cost, dearest) for number, cost in sorted(lines.items())[:MAX_LISTED]]
            blocks = [Block(False, rows)]
        found.append(Listing(plain(fmt.source(SourceLine(file=file, line=0)).rpartition(":")[0]), notes, blocks))
    return (variant.name if variant is not None else MISSING), found


def _variant(review: Review) -> Variant | None:
    """The variant whose lines are shown: the reference, else the first with rows that have lines."""
    base = reference(review)
    measured = [v for v in (base, *review.variants) if v is not None and v.status == "ok"]
    return next((v for v in measured if any(node.source for node in v.nodes)), base)


def _costs(review: Review, variant: Variant | None) -> dict[SourceLine, Cost]:
    found: dict[SourceLine, Cost] = {}
    for node in variant.nodes if variant is not None else ():
        if node.source is not None:
            _add(found.setdefault(node.source, Cost()), node)
    exposed = variant.exposed.lines if variant is not None and variant.exposed is not None else []
    for row in exposed:
        if row.source is not None:
            cost = found.setdefault(row.source, Cost())
            cost.exposed_us = _plus(cost.exposed_us, row.exposed_us)
            # What was laid out on the timeline is the same host time, once more: kept only where no op has it.
            cost.host_us = row.host_us if cost.host_us is None else cost.host_us
            cost.device_us = row.device_us if cost.device_us is None else cost.device_us
    for file, line, index in by_line(review):
        found.setdefault(SourceLine(file=file, line=line), Cost()).findings.append(index)
    return found


def _add(cost: Cost, node: Node) -> None:
    host = [us for us in (node.ft_us, node.ct_us, node.kt_us) if us is not None]
    cost.calls += node.count
    cost.launches = cost.launches if node.launches is None else (cost.launches or 0) + node.launches
    cost.host_us = _plus(cost.host_us, sum(host)) if node.ft_us is not None else cost.host_us
    cost.device_us = cost.device_us if node.device_us is None else _plus(cost.device_us, node.device_us)
    cost.ops[node.op] = None


def _plus(sum_us: float | None, us: float) -> float:
    return us if sum_us is None else sum_us + us


def _read(file: str) -> list[str] | str:
    """The lines of ``file``, or why they cannot be shown."""
    try:
        path = Path(file).resolve()
        if path.suffix != ".py":
            return "it is no Python file"
        if not path.is_file():
            return "the file is not on the machine that made this report"
        if path.stat().st_size > MAX_FILE:
            return "the file is too large"
        with tokenize.open(path) as opened:
            return opened.read().splitlines()
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    except (SyntaxError, ValueError, RuntimeError):  # no encoding, a name that is none, a link to itself
        return "the file is no readable text"


def _doubts(file: str, text: list[str], lines: dict[int, Cost], date: str) -> list[str]:
    """Reasons to think that this is not the text that ran."""
    beyond = sum(number > len(text) for number in lines)
    if beyond:
        return [f"{beyond} of its lines lie beyond its end: this is not the text that was reviewed."]
    try:
        made = datetime.fromisoformat(date)
        changed = datetime.fromtimestamp(Path(file).stat().st_mtime, tz=UTC)
    except (ValueError, OSError, OverflowError):
        return []  # an odd date, or a file that has just gone: nothing can be said
    made = made if made.tzinfo is not None else made.replace(tzinfo=UTC)
    return ["The file was changed after the review: its lines may have moved."] if changed > made else []


def _blocks(text: list[str], lines: dict[int, Cost], dearest: float) -> Iterator[Block]:
    """All lines of a file, those far from any cost in folded blocks."""
    near = {n for number in lines for n in range(number - CONTEXT, number + CONTEXT + 1)}
    rows: list[Row] = []
    folded = False
    for number, line in enumerate(text, 1):
        if rows and (number not in near) != folded:
            yield Block(folded and len(rows) > CONTEXT, rows)
            rows = []
        folded = number not in near
        rows.append(_row(number, line, lines.get(number), dearest))
    if rows:
        yield Block(folded and len(rows) > CONTEXT, rows)
    beyond = [_row(number, "", cost, dearest) for number, cost in sorted(lines.items()) if number > len(text)]
    if beyond:
        yield Block(False, beyond)


def _row(number: int, text: str, cost: Cost | None, dearest: float) -> Row:
    shown = fmt.clip(plain(text.expandtabs(4)), MAX_LINE)
    if cost is None:
        return Row(number, shown, (), "", 0, ())
    heat = 1 + min(HEATS - 1, int(HEATS * cost.rank_us / dearest)) if dearest > 0 and cost.rank_us > 0 else 0
    cells = (
        *(fmt.ms(us) for us in (cost.exposed_us, cost.host_us, cost.device_us)), fmt.count(cost.launches),
        fmt.count(cost.calls) if cost.calls else MISSING,
    )  # fmt: skip
    return Row(number, shown, cells, _ops(cost), heat, tuple(cost.findings))


def _ops(cost: Cost) -> str:
    """The line's ops; the variants' tables hold them all."""
    names = list(cost.ops)
    more = [f"… and {len(names) - MAX_OPS} more"] if len(names) > MAX_OPS else []
    return plain(", ".join([*names[:MAX_OPS], *more]))
