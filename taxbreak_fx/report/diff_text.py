"""A diff for the terminal, as GitHub-flavoured markdown, and as annotations of a pull request."""

from __future__ import annotations

import textwrap

from taxbreak_fx.diff_types import Diff
from taxbreak_fx.report.diff import page
from taxbreak_fx.report.format import clip
from taxbreak_fx.report.github import annotation, command
from taxbreak_fx.report.markdown import MAX_CELL, Block, bullets, escape, fitted, folded, grid
from taxbreak_fx.report.tables import Table
from taxbreak_fx.report.text import render

MOST_TERMS = 24  # rows in the terminal


def text(found: Diff, width: int = 100, top: int = 20) -> str:
    """Plain text, ``width`` columns wide where the columns that must stay whole allow it; ends in a newline.

    The table of ops is left out: the lines have them.
    """
    shown = page(found, top, all_terms=False)
    lines = [*shown.head, shown.state]
    terms = [_fewer(table) for table in shown.more if not table.title.startswith("Ops")]
    for table in [*shown.first, *terms]:
        body, dropped = render(table, width)
        title = f"{table.title}; no room for: {', '.join(dropped)}" if dropped else table.title
        lines += ["", title, *body, *table.under]
    wrapped = [part for note in shown.notes for part in textwrap.wrap(note, width, subsequent_indent="  ")]
    return "\n".join([*(clip(line.rstrip(), width) for line in lines), "", *wrapped]) + "\n"


def _fewer(table: Table) -> Table:
    left = len(table.rows) - MOST_TERMS
    if left <= 0:
        return table
    under = (f"… and {left} more: see --format markdown or json", *table.under)
    return Table(table.title, table.columns, table.rows[:MOST_TERMS], under)


def markdown(found: Diff, top: int = 50) -> str:
    """Markdown for pull requests and step summaries, at most 1 MiB; ends in a newline.

    Outcome, gates, variants, findings and lines stand open, the rest is folded.
    """
    shown = page(found, top, all_terms=True)
    head, *circumstances = (escape(clip(line, MAX_CELL)) for line in shown.head)
    blocks = [Block(f"# TaxBreak diff: {head}"), Block(f"**{escape(shown.state)}**")]
    blocks += [Block(line) for line in circumstances]
    blocks += [Block(f"## {escape(table.title)}\n\n{grid(table)}", table.title) for table in shown.first]
    blocks += [Block(folded(table.title, grid(table)), table.title) for table in shown.more]
    return fitted([*blocks, Block(folded("Notes", bullets(shown.notes)), "notes")], "--format json")


def github(found: Diff, root: str | None = None) -> str:
    """An annotation of GitHub per gate that failed and per new finding, as ``report.github`` writes them.

    What was there before the edit is none: a pull request is told what it changed.
    """
    gates = [
        command("error", f"{verdict.variant or 'review'}: {verdict.gate}: {verdict.why}", {"title": "taxbreak gate"})
        for verdict in found.verdicts
        if verdict.state == "failed"
    ]
    new = [annotation(change.finding, root) for change in found.findings if change.state == "new"]
    return "".join(f"{line}\n" for line in (*gates, *new))
