"""The terminal report: at most ``MAX_LINES`` lines of the given width."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from tabulate import DataRow, TableFormat, tabulate

from taxbreak_fx.model import Review
from taxbreak_fx.report import content
from taxbreak_fx.report.findings import terminal_lines
from taxbreak_fx.report.format import clip, shorten
from taxbreak_fx.report.generate import generate_table, steps_table
from taxbreak_fx.report.tables import Column, Table

MAX_LINES = 40
MAX_OPS, FEW_OPS = 10, 3
MAX_FINDINGS = 5
MAX_STEPS = 4
MIN_FLEXIBLE = 12

_FORMAT = TableFormat(
    lineabove=None, linebelowheader=None, linebetweenrows=None, linebelow=None, headerrow=None,
    datarow=DataRow("", " ", ""), padding=0, with_header_hide=None,
)  # fmt: skip


class _Room(NamedTuple):
    """Rows of the variants table and of the other one, lines under each, and the fewest notes."""

    variants: int
    removed: int
    variant_lines: int
    removed_lines: int
    notes: int


# Chosen so that all of it fits, with the findings or without.  Notes, up to so many, and the ops table take the lines
# that are left; a few ops come before the last notes.
MAX_NOTES = 4
_ALONE, _WITH_FINDINGS = _Room(7, 7, 5, 3, 4), _Room(7, 5, 4, 1, 2)
# The two tables of a generation stand in the place of what variants removed.
_GENERATED, FEW_FINDINGS = _Room(6, 0, 1, 0, 1), 2
REMOVED_ELSEWHERE = "What each variant removed: see report.md"


def terminal(review: Review, width: int = 100) -> str:
    """The review as plain text of at most 40 lines of ``width`` columns, ending in a newline.

    What does not fit (variants, notes, columns) is left out with a line that says so.
    """
    head = content.headline(review)
    variants = content.variants_table(review)
    reference = content.reference(review)
    base = reference.name if reference else "eager"
    removed = content.removed_table(review, base)
    whole = [found for found in (generate_table(review), steps_table(review)) if found is not None]
    room = _GENERATED if whole else _WITH_FINDINGS if review.findings else _ALONE
    body = _section(variants, width, room.variants, room.variant_lines)
    for generated in whole:
        body += _section(generated, width, MAX_STEPS, 2 if generated is whole[0] else 1)
    found = terminal_lines(review, FEW_FINDINGS if whole else MAX_FINDINGS)
    body += ["", *found] if found else []
    if removed is not None and not whole:
        body += _section(removed, width, room.removed, room.removed_lines)
    nodes = content.top_nodes(review, MAX_OPS)[1]
    notes = [*content.other_notes(review), *content.missing_notes(review, base, nodes)]
    notes += content.near_zero_note([variants]) + ([REMOVED_ELSEWHERE] if removed is not None and whole else [])
    # The foot has two lines beside the notes; the ops table comes with a blank line, a title, a header and a rule.
    left = MAX_LINES - len(head) - len(body) - 6
    foot = ["", content.HDBI_MEANING, *_limited(notes, min(MAX_NOTES, max(room.notes, left - FEW_OPS)), "notes")]
    left -= len(foot) - 2
    ops = content.ops_table(review, min(MAX_OPS, left)) if left > 0 else None
    lines = [*head, *body, *(_section(ops, width, MAX_OPS, 0) if ops else []), *foot]
    return "\n".join(clip(line.rstrip(), width) for line in lines) + "\n"


def _section(table: Table, width: int, rows: int, under: int) -> list[str]:
    """A blank line, the title, at most ``rows`` of the table, and at most ``under`` of its lines."""
    shown, below = table, _limited(table.under, under, "lines")
    if len(table.rows) > rows:
        shown = replace(table, rows=table.rows[: rows - 1])
        below = [f"… and {len(table.rows) - rows + 1} more rows: see review.json", *below]
    lines, dropped = render(shown, width)
    title = f"{table.title}; no room for: {', '.join(dropped)}" if dropped else table.title
    return ["", title, *lines, *below]


def _limited(lines: tuple[str, ...] | list[str], limit: int, what: str) -> list[str]:
    if len(lines) <= limit or not limit:
        return list(lines[:limit])
    return [*lines[: limit - 1], f"… and {len(lines) - limit + 1} more {what}: see review.json"]


def render(table: Table, width: int) -> tuple[list[str], list[str]]:
    """The table's lines, at most ``width`` wide where its fixed columns allow, and the columns left out for that."""
    table = table.select([i for i, column in enumerate(table.columns) if not column.detail])
    dropped = []
    while _minimum(table) > width and any(column.priority < 9 for column in table.columns):
        last = min(range(len(table.columns)), key=lambda i: table.columns[i].priority)
        dropped.append(table.columns[last].title)
        table = table.select([i for i in range(len(table.columns)) if i != last])
    widths = _widths(table, width)
    rows = [[_cut(cell, c, w) for cell, c, w in zip(row, table.columns, widths, strict=True)] for row in table.rows]
    header = [clip(column.title, size) for column, size in zip(table.columns, widths, strict=True)]
    # The header goes in as a row: tabulate would pad a real header by two columns.
    text = tabulate(
        [header, ["-" * size for size in widths], *rows],
        tablefmt=_FORMAT,
        disable_numparse=True,
        colalign=["right" if column.right else "left" for column in table.columns],
    )
    return text.splitlines(), dropped


def _natural(table: Table) -> list[int]:
    return [max([len(column.title), *(len(row[i]) for row in table.rows)]) for i, column in enumerate(table.columns)]


def _minimum(table: Table) -> int:
    sizes = zip(_natural(table), table.columns, strict=True)
    return sum(min(size, MIN_FLEXIBLE) if c.flexible else size for size, c in sizes) + len(table.columns) - 1


def _widths(table: Table, width: int) -> list[int]:
    """Natural widths, except that the flexible columns share what the others leave: the narrow ones stay whole."""
    sizes = _natural(table)
    flexible = sorted((i for i, column in enumerate(table.columns) if column.flexible), key=lambda i: sizes[i])
    left = width - (len(sizes) - 1) - sum(size for i, size in enumerate(sizes) if i not in flexible)
    for rank, i in enumerate(flexible):
        share = max(MIN_FLEXIBLE, left // (len(flexible) - rank))
        sizes[i] = min(sizes[i], share)
        left -= sizes[i]
    return sizes


def _cut(cell: str, column: Column, size: int) -> str:
    return shorten(cell, size) if column.keep == "end" else clip(cell, size)
