"""What the commands of ``taxbreak`` share: options, checks before the work, progress, and output."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from taxbreak_fx import schema
from taxbreak_fx.errors import OutputError, UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.report.format import plain
from taxbreak_fx.request import ReviewRequest

if TYPE_CHECKING:
    from taxbreak_fx.supervisor import Event

# The note by which the supervisor marks a review that Ctrl-C cut short.
INTERRUPTED_NOTE = "interrupted by the user"
REVIEW_FILE, MARKDOWN_FILE, HTML_FILE = "review.json", "report.md", "report.html"
MIN_WIDTH, DEFAULT_WIDTH, MAX_WIDTH = 80, 100, 160

MODEL_HELP = "Registry name, local directory, hub id or file.py:factory."
Phase = Annotated[Literal["prefill", "decode"], typer.Option(help="Which step.")]
Batch = Annotated[int, typer.Option(help="Sequences per step.")]
SeqLen = Annotated[int, typer.Option(help="Prompt length, or the position of the decode step.")]
Dtype = Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Of the weights.")]
Cache = Annotated[Literal["static", "dynamic"], typer.Option(help="KV cache of a decode step.")]
Implementation = Annotated[str | None, typer.Option(help="As transformers names it.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that the hub model brings.")]
Seed = Annotated[int, typer.Option(help="Of random weights and inputs.")]


def complain(message: str, code: int) -> int:
    """One line on stderr; returns ``code``."""
    print(f"taxbreak: {plain(' '.join(message.split()))}", file=sys.stderr)
    return code


def check_step(model: str, batch: int, seq_len: int, seed: int) -> None:
    """Refuse, before anything is loaded, what no model's step can be."""
    for name, value in (("--batch", batch), ("--seq-len", seq_len)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must be in 0 … 2**63 - 1, got {seed}")
    if not model.strip():
        raise UsageError("MODEL is empty; `taxbreak models` lists the names")


def check_writable(folder: Path) -> None:
    """Find out before minutes of measurement, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"--out {folder} cannot be written ({error.strerror}); choose another folder") from error


def default_folder(request: ReviewRequest) -> Path:
    """``taxbreak-out/<model>-<phase>-b<batch>-s<seq>`` with a model name that is safe as a folder name."""
    local = request.model.startswith((".", "/", "~"))
    name = Path(request.model).name if local else request.model
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"
    return Path("taxbreak-out") / f"{slug}-{request.phase}-b{request.batch}-s{request.seq_len}"


@contextmanager
def progress(silent: bool) -> Iterator[Any]:
    """A function for the supervisor's events: a progress bar on stderr, or nothing."""
    if silent:
        yield lambda event: None
        return
    from tqdm import tqdm

    with tqdm(total=0, unit="stage", file=sys.stderr, leave=False, dynamic_ncols=True) as bar:

        def show(event: Event) -> None:
            bar.total = event.total
            bar.n = event.done
            bar.set_description_str(plain(f"{event.variant}: {event.stage}" if event.variant else event.stage))
            if event.message and event.kind in ("failed", "note"):
                bar.write(plain(f"{event.variant or event.stage}: {event.message}"), file=sys.stderr)
            bar.refresh()

        yield show


def alone(device: Literal["cuda", "cpu"]) -> AbstractContextManager[None]:
    """The device for this process, without reviews beside it; says on stderr that it waits for one."""
    from taxbreak_fx.turn import turn_on

    @cache
    def waiting() -> None:
        print("taxbreak: waiting for another review on this device", file=sys.stderr)

    return turn_on(device, waiting)()


class Stages:
    """Tells a progress bar which of a few named stages begins."""

    def __init__(self, on_event: Any, names: tuple[str, ...]) -> None:
        self._on_event, self._names = on_event, names

    def begin(self, stage: str) -> None:
        """``stage`` begins; those before it are done."""
        from taxbreak_fx.supervisor import Event

        done = self._names.index(stage)
        self._on_event(Event(kind="start", stage=stage, variant=None, message="", done=done, total=len(self._names)))


def write_review(result: Review, folder: Path) -> None:
    """The three files of a review; a folder that exists."""
    from taxbreak_fx.report.html import html
    from taxbreak_fx.report.markdown import markdown

    schema.write(folder / REVIEW_FILE, schema.encode(result))
    schema.write(folder / MARKDOWN_FILE, markdown(result).encode())
    schema.write(folder / HTML_FILE, html(result).encode())


def render(result: Review, format: Literal["text", "markdown", "html", "json"]) -> str:
    """A review in one of the formats; text as wide as the terminal."""
    if format == "json":
        return schema.encode(result).decode()
    if format == "markdown":
        from taxbreak_fx.report.markdown import markdown

        return markdown(result)
    if format == "html":
        from taxbreak_fx.report.html import html

        return html(result)
    from taxbreak_fx.report.text import terminal

    return terminal(result, width())


def width() -> int:
    """Columns of the terminal, within reason; of a pipe, the default."""
    columns = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns if sys.stdout.isatty() else DEFAULT_WIDTH
    return min(max(columns, MIN_WIDTH), MAX_WIDTH)
