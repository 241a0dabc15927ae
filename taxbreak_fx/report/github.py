"""The findings as workflow commands of GitHub Actions: annotations at the lines of a pull request."""

from __future__ import annotations

from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.findings import message
from taxbreak_fx.report.format import plain
from taxbreak_fx.report.sarif import relative

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def github(review: Review, root: str | None = None) -> str:
    """One line per finding, the most costly first (GitHub shows the first ten of each level of a step).

    Paths below ``root`` become relative to it.  A line in an installed package, or in a file elsewhere, is named in
    the text instead, since GitHub can show annotations only at files of the repository.
    """
    return "".join(f"{annotation(finding, root)}\n" for finding in review.findings)


def annotation(finding: Finding, root: str | None) -> str:
    """The command for one finding, without a newline."""
    source = finding.source
    file = None if source is None or finding.in_library else relative(source.file, root)
    text = message(finding)
    properties = {}
    if file is not None and source is not None:
        properties = {"file": file, "line": str(max(1, source.line))}
    elif source is not None:
        text = f"{fmt.source(source)}: {text}"
    properties["title"] = f"taxbreak: {finding.title}"
    return command(COMMANDS[finding.severity], text, properties)


def command(level: str, text: str, properties: dict[str, str]) -> str:
    """A workflow command, escaped, without a newline."""
    given = ",".join(f"{name}={_property(plain(value))}" for name, value in properties.items())
    return f"::{level} {given}::{_data(plain(text))}"


def _data(text: str) -> str:
    """As GitHub escapes a command's message; the percent sign first, since the others bring more of it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As GitHub escapes a command's property."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
