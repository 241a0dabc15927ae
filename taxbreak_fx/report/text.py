"""The terminal report: at most ``MAX_LINES`` lines of the given width."""

from __future__ import annotations

from dataclasses import replace

from tabulate import DataRow, TableFormat, tabulate

from taxbreak_fx.model import Review
from taxbreak_fx.report import content
from taxbreak_fx.report.format import clip, shorten
from taxbreak_fx.report.tables import Column, Table

MAX_LINES = 40
# Chosen so that both tables, their lines and the notes fit; the ops table takes the lines that are left.
MAX_ROWS = 7
MAX_VARIANT_LINES, MAX_REMOVED_LINES = 5, 3
MAX_NOTES = 4
MAX_OPS = 10
MIN_FLEXIBLE = 12

_FORMAT = TableFormat(
    lineabove=None, linebelowheader=None, linebetweenrows=None, linebelow=None, headerrow=None,
    datarow=DataRow("", " ", ""), padding=0, with_header_hide=None,
)  # fmt: skip


def terminal(review: Review, width: int = 100) -> str:
    """The review as plain text of at most 40 lines of ``width`` columns, ending in a newline.

    What does not fit (variants, notes, columns) is left out with a line that says so.
    """
    head = content.headline(review)
    variants = content.variants_table(review)
    reference = content.reference(review)
    base = reference.name if reference else "eager"
    removed = content.removed_table(review, base)
    body = _section(variants, width, MAX_VARIANT_LINES)
    body += _section(removed, width, MAX_REMOVED_LINES) if removed else []
    nodes = content.top_nodes(review, MAX_OPS)[1]
    notes = [*content.other_notes(review), *content.missing_notes(review, base, nodes)]
    notes += content.near_zero_note([variants])
    foot = ["", content.HDBI_MEANING, *_limited(notes, MAX_NOTES, "notes")]
    # The ops table comes with a blank line, a title, a header and a rule.
    left = MAX_LINES - len(head) - len(body) - len(foot) - 4
    ops = content.ops_table(review, min(MAX_OPS, left)) if left > 0 else None
    lines = [*head, *body, *(_section(ops, width, 0) if ops else []), *foot]
    return "\n".join(clip(line.rstrip(), width) for line in lines) + "\n"


def _section(table: Table, width: int, under: int) -> list[str]:
    """A blank line, the title, the table, and at most ``under`` of its lines."""
    shown, below = table, _limited(table.under, under, "lines")
    if under and len(table.rows) > MAX_ROWS:
        shown = replace(table, rows=table.rows[: MAX_ROWS - 1])
        below = [f"… and {len(table.rows) - MAX_ROWS + 1} more rows: see review.json", *below]
    lines, dropped = render(shown, width)
    title = f"{table.title}; no room for: {', '.join(dropped)}" if dropped else table.title
    return ["", title, *lines, *below]


def _limited(lines: tuple[str, ...] | list[str], limit: int, what: str) -> list[str]:
    if len(lines) <= limit:
        return list(lines)
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
