"""The review as GitHub-flavoured markdown, for pull requests, issues and the summary of a workflow's step.

What a reviewer needs stands open: the headline, the findings, the variants.  The rest is folded, and left out from the
end, with a line that says so, where GitHub's limit of 1 MiB would be passed.
"""

from __future__ import annotations

from typing import NamedTuple

from tabulate import tabulate

from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review
from taxbreak_fx.report import content, findings, waterfall
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import plain
from taxbreak_fx.report.summary import facts, sentences
from taxbreak_fx.report.tables import Table

MAX_BYTES = 2**20
OPEN_TABLES = 2  # variants, and what they removed
MAX_CELL = 2_000  # characters

# Entities where a backslash would not do: GitHub splits table cells before it looks at backslashes.
_ESCAPES = {ord(char): "\\" + char for char in "\\*_[]#~!"} | {
    ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("|"): "&#124;", ord("`"): "&#96;",
    ord("@"): "@&#8203;",
}  # fmt: skip
# The same inside HTML, where a backslash would be shown.
_ENTITIES = {char: f"&#{ord(char)};" for char in "\\*_[]#~!&<>|`:"} | {"@": "@&#8203;"}


class Block(NamedTuple):
    """A part of the page, and its name, for where there is no room for it."""

    text: str
    name: str = ""


def escape(text: str) -> str:
    """``text`` with nothing left that markdown or HTML would interpret, nobody mentioned and nothing linked."""
    return text.translate(_ESCAPES).replace("://", "&#58;//").replace("www.", "www&#46;")


def markdown(review: Review) -> str:
    """The full report as markdown of at most 1 MiB, ending in a newline."""
    model, *circumstances = content.headline(review)
    tables, notes = content.page(review)
    blocks = [Block(f"# TaxBreak: {escape(model)}"), *(Block(escape(line)) for line in circumstances)]
    told = [*(f"{fact.name}: {fact.value} ({fact.note})" for fact in facts(review)), *sentences(review)]
    blocks += [Block(bullets(told))] if told else []
    blocks += _findings(review)
    for table in tables[:OPEN_TABLES]:
        blocks.append(Block(f"## {escape(table.title)}\n\n{grid(table)}", table.title))
    path = waterfall.path_table(review)
    for table in [*([path] if path is not None else []), *tables[OPEN_TABLES:]]:
        blocks.append(Block(folded(table.title, grid(table)), table.title))
    blocks.append(Block(folded("Notes", bullets(notes)), "notes"))
    return fitted(blocks)


def _findings(review: Review) -> list[Block]:
    table = findings.findings_table(review)
    if table is None:
        return []
    found = [Block(f"## {escape(table.title)}\n\n{grid(table)}", table.title)]
    return found + [Block(_finding(finding), f"finding: {plain(finding.title)}") for finding in review.findings]


def _finding(finding: Finding) -> str:
    title = plain(f"{finding.title}: {findings.where(finding)}, {findings.cost(finding)}")
    lines = [f"{name}: {value}" for name, value in [*findings.facts(finding), *findings.advice(finding)]]
    return folded(title, bullets([*lines, *(plain(line) for line in finding.evidence)]))


def folded(title: str, body: str) -> str:
    """A section that opens on a click.  Its title is HTML."""
    summary = "".join(_ENTITIES.get(char, char) for char in fmt.clip(title, MAX_CELL))
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def fitted(blocks: list[Block], whole: str = "review.json") -> str:
    """The blocks as one text of at most 1 MiB; as soon as one has no room, it and all behind it are named instead.

    ``whole``: what has them all.
    """
    left = MAX_BYTES - 4_096  # for the names
    shown: list[str] = []
    missing: list[str] = []
    for block in blocks:
        left -= len(block.text.encode()) + 2
        if left >= 0 and not missing:
            shown.append(block.text)
        else:
            missing.append(block.name)
    if missing:
        names = fmt.clip(", ".join(dict.fromkeys(missing)), 300)
        shown.append(f"No room here for {len(missing)} more sections ({whole} has them): {escape(names)}")
    return "\n\n".join(shown) + "\n"


def bullets(lines: tuple[str, ...] | list[str]) -> str:
    """``lines`` as a list, escaped."""
    return "\n".join(f"- {escape(fmt.clip(line, MAX_CELL))}" for line in lines)


def grid(table: Table) -> str:
    """``table`` without its title, escaped."""
    text = tabulate(
        [[escape(fmt.clip(cell, MAX_CELL)) for cell in row] for row in table.rows],
        headers=[escape(column.title) for column in table.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if column.right else "left" for column in table.columns],
    )
    return f"{text}\n\n{bullets(table.under)}" if table.under else text
