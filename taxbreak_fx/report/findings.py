"""What every report shows of a finding: where, at what cost, and what the fix is predicted to buy."""

from __future__ import annotations

from collections.abc import Iterator

from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, Table, table

MAX_PLACE = 36  # columns of a place in the terminal
IN_LIBRARY = "in an installed package, not in your own code"
TERM_NAMES = {"ft": "ΔFT", "ct": "ΔCT", "kt": "ΔKT", "device": "device", "wall": "wall", "sync": "sync returns"}


def where(finding: Finding) -> str:
    """``folder/file.py:line``, marked where the line is a library's."""
    return f"{fmt.source(finding.source)}{' (library)' if finding.in_library else ''}"


def share(finding: Finding) -> str:
    """Of T_wall, in per cent."""
    return MISSING if finding.share is None else f"{100 * finding.share:.1f} %"


def cost(finding: Finding) -> str:
    """The exposed cost in words; says so where it is not known."""
    if finding.exposed_us is None:
        return "exposed cost not known"
    part = "" if finding.share is None else f", {share(finding)} of the wall time"
    return f"{fmt.ms(finding.exposed_us)} ms exposed per step{part}"


def saving(finding: Finding) -> str | None:
    """What the fix removes, by term, and whether that was measured; None where nothing can be said."""
    if not finding.saving_us:
        return None
    parts = [f"{_term(name)} {fmt.change(-us)} ms" for name, us in finding.saving_us.items()]
    origin = "" if finding.saving_origin is None else f" ({finding.saving_origin})"
    return f"{', '.join(parts)} per step{origin}"


def _term(name: str) -> str:
    short = name.removesuffix("_us")
    return TERM_NAMES.get(short, short)


def message(finding: Finding) -> str:
    """One paragraph: title, whose line it is, cost, fix and saving; for annotations and SARIF."""
    parts = [f"{finding.title} ({finding.variant}: {cost(finding)})."]
    parts += [f"This line is {IN_LIBRARY}."] if finding.in_library else []
    parts += [f"Fix: {finding.fix.rstrip(' .')}."]
    bought = saving(finding)
    parts += [f"That saves {bought}."] if bought else []
    return plain(" ".join(parts))


def facts(finding: Finding) -> list[tuple[str, str]]:
    """Name and value of what stands beside the title: all but the advice and the evidence."""
    found = [("severity", finding.severity), ("confidence", finding.confidence), ("variant", finding.variant)]
    found += [("source", f"{fmt.source(finding.source)}{f', {IN_LIBRARY}' if finding.in_library else ''}")]
    found += [("module", finding.module_path)] if finding.module_path else []
    found += [("op", finding.op)] if finding.op else []
    found += [("cost", cost(finding)), ("rule", f"{finding.rule}: docs/rules/{finding.rule}.md")]
    return [(name, plain(value)) for name, value in found]


def advice(finding: Finding) -> list[tuple[str, str]]:
    """The fix and, where something can be said, what it saves."""
    bought = saving(finding)
    found = [("Fix", finding.fix), *([("Saves", bought)] if bought else [])]
    return [(name, plain(value)) for name, value in found]


def findings_table(review: Review) -> Table | None:
    """One row per finding, the most costly first.  None without any."""
    if not review.findings:
        return None
    columns = (
        Column("severity"), Column("finding", flexible=True), Column("source", flexible=True, keep="end"),
        Column("variant"), Column("exposed", right=True), Column("share", right=True), Column("saves"),
        Column("confidence"),
    )  # fmt: skip
    rows = [
        [
            f.severity, f.title, where(f), f.variant, fmt.ms(f.exposed_us), share(f), saving(f) or MISSING,
            f.confidence,
        ]
        for f in review.findings
    ]  # fmt: skip
    return table("Findings (ms per step, most costly first)", columns, rows)


def terminal_lines(review: Review, limit: int) -> list[str]:
    """A title and the first ``limit`` findings, one line each; empty without any."""
    found = review.findings
    if not found:
        return []
    shown = found[:limit]
    title = f"Findings ({len(shown)} of {len(found)}, ms exposed per step; docs/rules has the fixes)"
    cells = [(f.severity, fmt.ms(f.exposed_us), plain(f.variant), plain(where(f)), plain(f.title)) for f in shown]
    first, us, name, place = (max(len(row[i]) for row in cells) for i in range(4))
    place = min(MAX_PLACE, place)
    return [
        title,
        *(
            f"{row[0]:<{first}}  {row[1]:>{us}}  {row[2]:<{name}}  {fmt.shorten(row[3], place):<{place}}  {row[4]}"
            for row in cells
        ),
    ]


def by_line(review: Review) -> Iterator[tuple[str, int, int]]:
    """File, line and index of each finding that has a line."""
    for index, finding in enumerate(review.findings):
        if finding.source is not None:
            yield finding.source.file, finding.source.line, index
