"""The command that compares two reviews, and fails where a gate does: diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from taxbreak_fx import schema
from taxbreak_fx.cli_common import complain, width
from taxbreak_fx.errors import EXIT_GATE, EXIT_OK, FormatError, UsageError
from taxbreak_fx.gates import GateError, failed, judge, parse
from taxbreak_fx.report.format import plain

DiffFormat = Literal["text", "markdown", "github", "json"]


def diff(
    base: Annotated[Path, typer.Argument(metavar="BASE_JSON", help="The review before the edit.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD_JSON", help="The review after it.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(metavar="GATE", help="'launches>+2%', 'inductor:exposed.ft_us>+5%&>50us'; repeated for more."),
    ] = None,
    format: Annotated[DiffFormat, typer.Option(help="Of the output.")] = "text",
    top: Annotated[int, typer.Option(help="Rows of findings, of lines and of ops to print.")] = 20,
    allow_versions: Annotated[
        bool, typer.Option("--allow-versions", help="Compare other versions of torch, transformers, triton.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare another model, step or device.")] = False,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Put HEAD_JSON in the place of BASE_JSON unless a gate failed.")
    ] = False,
) -> int:
    """Compare two reviews of one step: what runs otherwise, and which times changed beyond their noise."""
    from taxbreak_fx.diff import diff as compare
    from taxbreak_fx.diff import encode
    from taxbreak_fx.report.diff_text import github, markdown, text

    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    try:
        gates = [parse(gate) for gate in fail_on or ()]
    except GateError as error:
        return _point(error)
    data = _read(head)
    after = schema.decode(data, str(head))
    if update_baseline and not base.exists():
        schema.write(base, data)
        print(f"taxbreak: there was no base: wrote {plain(str(base))}, compared nothing", file=sys.stderr)
        return EXIT_OK
    before = schema.load(base)
    found = compare(before, after, allow_versions=allow_versions, force=force, names=(str(base), str(head)))
    found = msgspec.structs.replace(found, verdicts=judge(gates, found))
    shown = {
        "text": lambda: text(found, width(), top),
        "markdown": lambda: markdown(found, top),
        "github": lambda: github(found, str(Path.cwd())),
        "json": lambda: encode(found).decode(),
    }
    sys.stdout.write(shown[format]())
    lost = failed(found.verdicts)
    if lost:
        names = dict.fromkeys(f"{v.variant}: {v.gate}" if v.variant else v.gate for v in lost)
        kept = "; the baseline stays" if update_baseline else ""
        return complain(f"failed: {', '.join(names)}{kept}", EXIT_GATE)
    if update_baseline:
        # Where base is a link, its target is what others read.
        schema.write(base.resolve(), data)
        print(f"taxbreak: wrote {plain(str(base))}", file=sys.stderr)
    return EXIT_OK


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); give the path of a review.json") from error


def _point(error: GateError) -> int:
    """What is wrong with a gate, and under the gate a caret at the character."""
    code = complain(f"--fail-on: {error.problem}", error.exit_code)
    # What is shown of a control character is longer than it.
    before = len(plain(error.text[: error.at]))
    print(f"  {plain(error.text)}\n  {' ' * before}^", file=sys.stderr)
    return code
