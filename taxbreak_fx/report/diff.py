"""What the text and markdown of a diff show: its outcome in one line, tables and notes, as data and not yet escaped."""

from __future__ import annotations

import collections
from typing import NamedTuple

from taxbreak_fx.diff_metrics import PART
from taxbreak_fx.diff_types import Clock, Diff, Side
from taxbreak_fx.report import diff_tables as tables
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import plain
from taxbreak_fx.report.tables import Table

MAX_FILE = 40  # columns of a file name in the heading
MEANING = (
    "expected: the base as the head's machine would show it if nothing had changed, with its noise; * marks a change "
    "beyond that; counts are exact"
)


class Page(NamedTuple):
    """A diff, ready for a renderer: ``state`` is its outcome in one line.

    ``first``: what a reviewer must see, in order; ``more``: the numbers behind it.
    """

    head: list[str]
    state: str
    first: list[Table]
    more: list[Table]
    notes: list[str]


def page(found: Diff, top: int, all_terms: bool) -> Page:
    """At most ``top`` rows of findings, of lines and of ops; a line under the table says how many are left out.

    ``all_terms``: also the main terms that stayed.
    """
    first = [
        tables.gates_table(found.verdicts), tables.variants_table(found), tables.findings_table(found.findings, top),
        tables.lines_table(found, top),
    ]  # fmt: skip
    more = [tables.changes_table(found, all_terms), tables.rows_table(found.rows, top)]
    gone = [
        f"{s.variant}: {s.base} → {s.head}" + (f": {s.reason}" if s.reason else "")
        for s in found.variants
        if s.base != s.head
    ]
    return Page(
        head=[plain(line) for line in _heading(found)],
        state=plain(state(found)),
        first=[made for made in first if made is not None],
        more=[made for made in more if made is not None],
        notes=[plain(note) for note in (*gone, *found.notes, MEANING, *_clocks(found.clocks), *_missing(found))],
    )


def state(found: Diff) -> str:
    """The outcome in one line."""
    bad = {verdict.gate for verdict in found.verdicts if verdict.state == "failed"}
    gates = {verdict.gate for verdict in found.verdicts}
    judged = (
        [f"{len(bad)} of {len(gates)} gates failed"]
        if bad
        else [_many(len(gates), "gate") + " passed"]
        if gates
        else []
    )
    return "; ".join([*judged, _changed(found)])


def _changed(found: Diff) -> str:
    real = sum(change.real for change in found.changes)
    new = sum(change.state == "new" for change in found.findings)
    fixed = sum(change.state == "fixed" for change in found.findings)
    if not (real or found.rows or new or fixed):
        return "nothing changed: counts are equal, times within their noise"
    ops = len({(row.op, row.module_path, row.presence) for row in found.rows})
    lines = len({(line.source.file, line.source.line) for line in found.lines if line.source is not None})
    what = [f"{_many(ops, 'op')} on {_many(lines, 'line')} changed"] if ops else []
    what += [f"{_many(real, 'metric')} beyond noise"] if real else []
    return ", ".join([*what, f"{_many(new, 'finding')} new", f"{fixed} fixed"])


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _heading(found: Diff) -> list[str]:
    lines = [f"{found.head.model}: {_files(found.base.name, found.head.name)}", *_sides(found.base, found.head)]
    # An option that differs explains the rest, so it stands on top.
    return [
        *lines,
        *([f"not alike, and allowed by an option: {'; '.join(found.overridden)}"] if found.overridden else []),
    ]


def _files(base: str, head: str) -> str:
    """Both files, without the folders that they have in common."""
    parts = [name.replace("\\", "/").split("/") for name in (base, head)]
    while min(map(len, parts)) > 1 and parts[0][0] == parts[1][0]:
        parts = [part[1:] for part in parts]
    return " → ".join(fmt.shorten("/".join(part), MAX_FILE) for part in parts)


def _sides(base: Side, head: Side) -> list[str]:
    def line(side: Side) -> str:
        return f"{side.origin}, {side.device}, torch {side.torch}, transformers {side.transformers}"

    if line(base) == line(head):
        return [line(base)]
    return [f"base: {line(base)}", f"head: {line(head)}"]


def _clocks(clocks: list[Clock]) -> list[str]:
    """How times were brought to one clock, variants that were brought the same way together."""
    groups: dict[tuple[str, bool], list[Clock]] = collections.defaultdict(list)
    for clock in clocks:
        if not clock.exact:
            groups[clock.source, clock.host is None].append(clock)
    found = []
    for (source, unknown), group in groups.items():
        names = ", ".join(clock.variant for clock in group)
        if unknown:
            found.append(f"{names}: times are not compared: {source}")
        else:
            hosts = _range([clock.host for clock in group if clock.host is not None])
            spreads = _range([clock.spread for clock in group])
            found.append(
                f"{names}: host time {hosts} × the base's for the same work, known to a factor of {spreads} ({source})"
            )
    return found


def _missing(found: Diff) -> list[str]:
    """What could not be compared; parts of ΔFT, which only some variants have, are left to the JSON."""
    metrics: dict[tuple[str | None, str], list[str]] = collections.defaultdict(list)
    known = {clock.source for clock in found.clocks}
    for change in found.changes:
        if change.reason and change.reason not in known and not change.metric.startswith(PART):
            metrics[change.variant, change.reason].append(change.metric)
    return [f"{variant or 'review'}: {', '.join(names)}: {why}" for (variant, why), names in metrics.items()]


def _range(values: list[float]) -> str:
    ends = fmt.number(min(values)), fmt.number(max(values))
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} … {ends[1]}"
