"""The review as one self-contained HTML page: no script, and a policy that forbids every request."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape

from taxbreak_fx.model import Review
from taxbreak_fx.report import content
from taxbreak_fx.report.format import plain

TEMPLATE = "review.html.j2"


def html(review: Review) -> str:
    """The full report as an HTML page; every value is escaped by the template engine."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    model, *circumstances = content.headline(review)
    tables, notes = content.page(review)
    page = environment.get_template(TEMPLATE)
    return page.render(
        model=model,
        circumstances=circumstances,
        tables=tables,
        notes=notes,
        tool_version=plain(review.tool_version),
        schema_version=plain(review.schema_version),
        date=plain(review.machine.date),
    )


def notebook(review: Review) -> str:
    """The page in a sandboxed frame, so that neither its styles nor its content touch the notebook around it."""
    return f'<iframe sandbox srcdoc="{escape(html(review))}" style="border: 0; width: 100%; height: 40rem"></iframe>'
