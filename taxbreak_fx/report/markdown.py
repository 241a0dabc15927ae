"""The review as GitHub-flavoured markdown, for pull requests and issues."""

from __future__ import annotations

from tabulate import tabulate

from taxbreak_fx.model import Review
from taxbreak_fx.report import content
from taxbreak_fx.report.tables import Table

# Entities where a backslash would not do: GitHub splits table cells before it looks at backslashes.
_ESCAPES = {ord(char): "\\" + char for char in "\\*_[]#~!"} | {
    ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("|"): "&#124;", ord("`"): "&#96;",
}  # fmt: skip


def escape(text: str) -> str:
    """``text`` with nothing left that markdown or HTML would interpret."""
    return text.translate(_ESCAPES)


def markdown(review: Review) -> str:
    """The full report as markdown, ending in a newline."""
    model, *circumstances = content.headline(review)
    tables, notes = content.page(review)
    blocks = [f"# TaxBreak: {escape(model)}", *(escape(line) for line in circumstances)]
    for table in tables:
        blocks += [f"## {escape(table.title)}", _table(table)]
        blocks += [_list(table.under)] if table.under else []
    blocks += ["## Notes", _list(notes)]
    return "\n\n".join(blocks) + "\n"


def _list(lines: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _table(table: Table) -> str:
    return tabulate(
        [[escape(cell) for cell in row] for row in table.rows],
        headers=[escape(column.title) for column in table.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if column.right else "left" for column in table.columns],
    )
