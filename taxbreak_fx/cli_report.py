"""The commands that turn a saved review into something else: report and repro."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from taxbreak_fx import schema
from taxbreak_fx.cli_common import check_writable
from taxbreak_fx.errors import EXIT_OK, OutputError, UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.report.format import plain

ReportFormat = Literal["html", "markdown", "sarif", "github", "chrome-trace"]
ReviewFile = Annotated[Path, typer.Argument(metavar="REVIEW_JSON", help="A saved review.json.")]


def report(
    path: ReviewFile,
    format: Annotated[ReportFormat, typer.Option(help="Of the output.")] = "html",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Replaced if it exists; default: stdout.")] = None,
    no_source: Annotated[
        bool, typer.Option("--no-source", help="html: leave the text of the source files out.")
    ] = False,
) -> int:
    """Write a saved review as a page, for a pull request, for code scanning, or as a trace."""
    if no_source and format != "html":
        raise UsageError(f"--no-source is for --format html: {format} never holds source text")
    _check_file(out, f"report.{format}")
    from taxbreak_fx.findings import completed

    _deliver(_rendered(completed(schema.load(path)), format, not no_source), out)
    return EXIT_OK


def _rendered(review: Review, format: ReportFormat, source: bool) -> str:
    if format == "html":
        from taxbreak_fx.report.html import html

        return html(review, source)
    if format == "markdown":
        return review.to_markdown()
    if format == "chrome-trace":
        from taxbreak_fx.report.chrome_trace import chrome_trace

        return chrome_trace(review)
    root = str(Path.cwd())
    if format == "sarif":
        from taxbreak_fx.report.sarif import sarif

        return sarif(review, root)
    from taxbreak_fx.report.github import github

    return github(review, root)


def repro(
    path: ReviewFile,
    variant: Annotated[str, typer.Option(metavar="NAME", help="The variant to run.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Replaced if it exists; default: stdout.")] = None,
) -> int:
    """Write a script that rebuilds the model and the step of a review, and times one variant beside eager."""
    from taxbreak_fx.model_configs import find
    from taxbreak_fx.report.repro import repro as script

    _check_file(out, "repro.py")
    review = schema.load(path)
    text = script(review, variant)
    model = review.model
    if ":" not in model and find(model) is None and not Path(model).is_dir() and model.count("/") != 1:
        raise UsageError(f"{path}: no model {model!r} here: not a registry name, a directory or an org/name of the hub")
    _deliver(text, out)
    return EXIT_OK


def _check_file(out: Path | None, example: str) -> None:
    if out is None:
        return
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder: name a file in it, {out / example}")
    check_writable(out.parent)


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    schema.write(out, text.encode())
    print(f"taxbreak: wrote {plain(str(out))}", file=sys.stderr)
