"""The review as one self-contained HTML page: nothing is fetched, and a policy forbids that anything could be.

Scripts and styles are the page's own, allowed by their hashes, so that text of a review could not run even if it
came to stand where a script may.  Everything from a review is escaped by the template engine or is inert JSON.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from taxbreak_fx.model import Review
from taxbreak_fx.report import content, findings, summary, waterfall
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.listing import HEAD, listings
from taxbreak_fx.report.plots import waterfall_chart
from taxbreak_fx.report.tables import Table
from taxbreak_fx.report.timeline_data import timelines

PAGE = Path(__file__).parent / "page"
TEMPLATE, STYLE, SCRIPTS = "review.html.j2", "page.css", ("tables.js", "timeline.js")
MAX_BYTES = 3_000_000
TIMELINE_BYTES = 1_600_000
MAX_ROWS, MAX_EVIDENCE = 200, 20  # rows of a table and notes; lines of a finding
MAX_TEXT = 600  # characters of one cell or line
MIN_FILTERED = 8  # rows from which on a table gets a field to filter it


class _Assets(NamedTuple):
    style: Markup
    script: Markup
    policy: str


def html(review: Review, source: bool = True) -> str:
    """The full report as an HTML page of at most 3 MB; ``source``: with the author's files, as far as they are here.

    What has no room is left out, and the page says so: the source goes first, then the timelines.
    """
    for with_source, with_timelines in ((source, True), (False, True), (False, False)):
        text = _page(review, with_source, with_timelines)
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _page(review: Review, source: bool, drawn: bool) -> str:
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_short,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    model, *circumstances = content.headline(review)
    tables, notes = content.page(review)
    timeline, missing = timelines(review, TIMELINE_BYTES if drawn else 0)
    listed, files = listings(review, source)
    path, lines = waterfall.path(review), waterfall.chart_lines(review)
    return environment.get_template(TEMPLATE).render(
        assets=_assets(),
        model=model,
        circumstances=circumstances,
        facts=summary.facts(review),
        sentences=summary.sentences(review),
        findings=[
            (
                one.severity,
                plain(one.title),
                findings.facts(one),
                findings.advice(one),
                [plain(line) for line in one.evidence[:MAX_EVIDENCE]],
            )
            for one in review.findings[:MAX_ROWS]
        ],
        finding_table=_limited(findings.findings_table(review)),
        chart=waterfall_chart(lines) if lines else None,
        terms=waterfall.terms_of(lines),
        path_table=waterfall.path_table(review),
        path_title=waterfall.title(path) if path else "",
        variants=_limited(tables[0]),
        tables=[_limited(table) for table in tables[1:]],
        timeline=Markup(timeline),
        drawn='"variants":[]' not in timeline,
        timeline_notes=missing,
        listed_variant=plain(listed),
        listing_head=HEAD,
        files=files,
        notes=[*notes[:MAX_ROWS], *_more(len(notes), "notes")],
        machine=machine(review),
        min_filtered=MIN_FILTERED,
        tool_version=plain(review.tool_version),
        schema_version=plain(review.schema_version),
        date=plain(review.machine.date),
    )


def _short(value: object) -> object:
    """No single text of a review may fill the page; what the templates have made is not touched."""
    return fmt.clip(value, MAX_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


def notebook(review: Review) -> str:
    """The page in a sandboxed frame, so that neither its styles nor its content touch the notebook around it.

    Its scripts run in an origin of their own; a notebook that forbids them still shows everything but the drawing.
    """
    return (
        f'<iframe sandbox="allow-scripts" title="TaxBreak review" srcdoc="{escape(html(review))}" '
        'style="border: 0; width: 100%; height: 50rem"></iframe>'
    )


def machine(review: Review) -> list[tuple[str, str]]:
    """Name and value of what the numbers were taken on and how."""
    found, conditions = review.machine, review.machine.conditions
    clocks, loop = conditions.gpu_clocks_mhz, found.calibration.host_score
    score = found.calibration.host_reference
    rows = [
        ("device", found.device), ("host CPU", f"{found.host_cpu}, {found.cores} cores"), ("python", found.python),
        ("torch", found.torch), ("CUDA", found.cuda), ("driver", found.driver), ("transformers", found.transformers),
        ("triton", found.triton), ("Python loop", None if loop is None else f"{fmt.number(loop)} iterations/µs"),
        ("host score", None if score is None else f"{fmt.microseconds(score.us)} (version {score.version})"),
        ("threads", str(conditions.threads)), ("cores allowed", str(len(conditions.affinity))),
        ("garbage collection", conditions.gc), ("gradients", conditions.grad_mode),
        ("seed", None if conditions.seed is None else str(conditions.seed)),
        ("GPU clocks", None if clocks is None else ", ".join(f"{name} {mhz:g} MHz" for name, mhz in clocks.items())),
        ("load at the start", None if conditions.load is None else fmt.number(conditions.load)),
        ("date", found.date), ("origin", review.origin), ("scope", review.scope),
    ]  # fmt: skip
    return [(name, MISSING if value is None else plain(value)) for name, value in rows]


def _limited(table: Table | None) -> Table | None:
    """At most so many rows, and lines under them."""
    if table is None:
        return None
    under = (*table.under[:MAX_ROWS], *_more(len(table.rows), "rows"))
    return Table(table.title, table.columns, table.rows[:MAX_ROWS], under)


def _more(count: int, what: str) -> list[str]:
    return [f"… and {count - MAX_ROWS} more {what}: see review.json"] if count > MAX_ROWS else []


def _assets() -> _Assets:
    """The page's own style and script, and the policy that allows these two and nothing else."""
    style = (PAGE / STYLE).read_text(encoding="utf-8")
    script = "".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _Assets(Markup(style), Markup(script), policy)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
