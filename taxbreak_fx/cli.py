"""The ``taxbreak`` command: arguments in, files and text out.  docs/cli.md lists the commands and exit codes."""

from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from taxbreak_fx import __version__, schema
from taxbreak_fx.cli_common import (
    HTML_FILE,
    INTERRUPTED_NOTE,
    MARKDOWN_FILE,
    MODEL_HELP,
    REVIEW_FILE,
    Batch,
    Cache,
    Dtype,
    Implementation,
    Phase,
    Seed,
    SeqLen,
    TrustRemoteCode,
    alone,
    check_step,
    check_writable,
    complain,
    default_folder,
    progress,
    render,
    write_review,
)
from taxbreak_fx.cli_diff import diff
from taxbreak_fx.cli_predict import predict
from taxbreak_fx.cli_report import report, repro
from taxbreak_fx.cli_whatif import calibrate, fusion, whatif
from taxbreak_fx.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    CaptureError,
    MeasurementError,
    MismatchError,
    TaxbreakError,
    UsageError,
)
from taxbreak_fx.model import Review
from taxbreak_fx.report.format import plain
from taxbreak_fx.request import DEFAULT_TIMEOUT_S, ReviewRequest, check_variants

DEFAULT_TOKENS = 32
PROBES = "probes"  # the model name by which verify runs its own small steps

# typer does not export this class, and whether it lives in click or in typer depends on typer's release.
_COMMAND_LINE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Where the host time of a PyTorch step goes, and what each way of compiling it removes.",
)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    command = typer.main.get_command(app)
    try:
        # Not command.main(): it turns Ctrl-C into an exit code of its own.
        with command.make_context("taxbreak", list(arguments)) as context:
            code: int = command.invoke(context)
            return code
    except typer.Exit as done:
        return done.exit_code
    except _COMMAND_LINE_ERROR as error:
        return complain(f"{error.format_message().rstrip('.')}; see taxbreak --help", UsageError.exit_code)
    except TaxbreakError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted", EXIT_INTERRUPTED)


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show Δ gets a question mark instead of a traceback.
            stream.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"taxbreak_fx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where the host time of a PyTorch step goes, and what each way of compiling it removes."""


@app.command()
def review(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    phase: Annotated[
        Literal["prefill", "decode", "generate"],
        typer.Option(help="Which step; generate: prefill and decode steps as generate() runs them, and all of it."),
    ] = "decode",
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate per sequence; only with --phase generate, default: 32.")
    ] = None,
    batch: Batch = 1,
    seq_len: SeqLen = 512,
    dtype: Dtype = "bfloat16",
    cache: Cache = "static",
    attn_implementation: Implementation = None,
    experts_implementation: Implementation = None,
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="auto: cuda where there is one.")] = "auto",
    variants: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Separated by commas, or repeated; default: all of the device."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one stage of one variant.")] = DEFAULT_TIMEOUT_S,
    budget: Annotated[float, typer.Option(help="Seconds of timed pairs per variant.")] = 6.0,
    weights: Annotated[bool, typer.Option("--weights", help="Load weights; default: random ones.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; default: taxbreak-out/MODEL-PHASE-bBATCH-sSEQ.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the review as JSON, not as text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> int:
    """Measure a model's step in every variant, and say what each variant removes."""
    for name, seconds in (("--timeout", timeout), ("--budget", budget)):
        if not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(f"{name} must be a positive number of seconds, got {seconds:g}")
    check_step(model, batch, seq_len, seed)
    request = ReviewRequest(
        model=model,
        phase=phase,
        tokens=_tokens(tokens, phase, model),
        batch=batch,
        seq_len=seq_len,
        dtype=dtype,
        cache=cache,
        attn_implementation=attn_implementation,
        experts_implementation=experts_implementation,
        device=device,
        variants=_variant_names(variants, device),
        timeout_s=timeout,
        budget_s=budget,
        weights=weights,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    folder = out if out is not None else default_folder(request)
    check_writable(folder)

    from taxbreak_fx.generate_review import supervise_generate
    from taxbreak_fx.supervisor import supervise

    with progress(quiet or not sys.stderr.isatty()) as on_event:
        result = (supervise_generate if phase == "generate" else supervise)(request, folder, on_event)
    return _deliver(result, folder, json, quiet)


def _tokens(given: int | None, phase: str, model: str) -> int:
    """The number of tokens to generate, 0 in other phases.  Raises ``UsageError`` for what cannot be."""
    if phase != "generate":
        if given is not None:
            raise UsageError(f"--tokens is for --phase generate, and the phase is {phase}")
        return 0
    if given is not None and given < 1:
        raise UsageError(f"--tokens must be at least 1, got {given}")
    if ":" in model:
        raise UsageError(f"--phase generate takes transformers models; {model} makes a step of its own")
    return DEFAULT_TOKENS if given is None else given


def _variant_names(given: list[str] | None, device: str) -> tuple[str, ...]:
    if given is None:
        return ()
    names = [name.strip() for item in given for name in item.split(",") if name.strip()]
    if not names:
        raise UsageError("--variants names no variant; leave it out to run all that the device supports")
    # Whether "auto" has a GPU is known only once torch is loaded; the supervisor checks again then.
    return check_variants(names, "cpu" if device == "cpu" else "cuda")


def _deliver(result: Review, folder: Path, json: bool, quiet: bool) -> int:
    """Write the files, print the report, and turn the outcome into the exit code."""
    try:
        write_review(result, folder)
    finally:
        # A full disk must not cost the user what was measured.
        sys.stdout.write(render(result, "json" if json else "text"))

    where = folder / REVIEW_FILE
    if any(INTERRUPTED_NOTE in note for note in result.notes):
        done = ", ".join(variant.name for variant in result.variants if variant.status == "ok") or "none"
        return complain(f"interrupted; variants done: {done}; saved in {where}", EXIT_INTERRUPTED)
    eager = next((variant for variant in result.variants if variant.name == "eager"), None)
    if eager is None or eager.status != "ok":
        state = "is not in the review" if eager is None else f"{eager.status}: {eager.reason}"
        return complain(f"eager {state}; there is nothing to compare with (see {where})", CaptureError.exit_code)
    if not quiet:
        print(f"taxbreak: wrote {plain(str(where))}, {MARKDOWN_FILE}, {HTML_FILE}", file=sys.stderr)
    return EXIT_OK


@app.command()
def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP} {PROBES}: taxbreak's own small steps.")],
    phase: Phase = "decode",
    batch: Batch = 1,
    seq_len: SeqLen = 512,
    dtype: Dtype = "bfloat16",
    cache: Cache = "static",
    attn_implementation: Implementation = None,
    experts_implementation: Implementation = None,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = 0,
    mislabel: Annotated[
        str | None, typer.Option(metavar="OP", help="Predict a wrong library for this op on purpose; verify must fail.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
) -> int:
    """Compare the library predicted for each op of one eager step with the library calls observed on the GPU."""
    check_step(model, batch, seq_len, seed)
    from taxbreak_fx.models import load
    from taxbreak_fx.verify import require_cuda, verify_steps, verify_workload
    from taxbreak_fx.verify_probes import probe_steps
    from taxbreak_fx.verify_text import verification_json, verification_text

    device = require_cuda()
    request = ReviewRequest(
        model=model,
        phase=phase,
        batch=batch,
        seq_len=seq_len,
        dtype=dtype,
        cache=cache,
        attn_implementation=attn_implementation,
        experts_implementation=experts_implementation,
        device="cuda",
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    with alone(device):
        if model == PROBES:
            found = verify_steps(PROBES, probe_steps(device), mislabel)
        else:
            found = verify_workload(load(request, device), mislabel)
    sys.stdout.write(verification_json(found) if json else verification_text(found))
    if not found.control.found:
        raise MeasurementError(f"{found.control.op} with a wrong library was no mismatch: verify proves nothing here")
    if found.mismatches:
        ops = ", ".join(dict.fromkeys(check.op for check in found.mismatches))
        raise MismatchError(f"predicted and observed libraries disagree on {ops}; mend the rule, or register the op")
    return EXIT_OK


for command in (calibrate, diff, fusion, predict, whatif, report, repro):
    app.command()(command)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="REVIEW_JSON", help="A saved review.json.")],
    format: Annotated[Literal["text", "markdown", "html", "json"], typer.Option(help="Of the output.")] = "text",
) -> int:
    """Print a saved review."""
    from taxbreak_fx.findings import completed

    review = schema.load(path)
    sys.stdout.write(render(review if format == "json" else completed(review), format))
    return EXIT_OK


@app.command()
def models() -> int:
    """List the models that have a name here."""
    from tabulate import tabulate

    from taxbreak_fx.model_configs import registry

    rows = [[e.name, e.layers, e.hidden, f"{e.parameters:,}", e.params_description] for e in registry()]
    header = ["name", "layers", "hidden", "parameters", "description"]
    alignment = ["left", "right", "right", "right", "left"]
    print(tabulate(rows, headers=header, disable_numparse=True, colalign=alignment))
    return EXIT_OK


@app.command(name="schema")
def print_schema() -> int:
    """Print the JSON schema of review.json."""
    sys.stdout.write(schema.json_schema_text())
    return EXIT_OK
