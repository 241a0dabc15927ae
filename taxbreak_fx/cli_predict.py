"""``taxbreak predict``: a step on a GPU that is not here, from a hardware profile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from taxbreak_fx import hardware
from taxbreak_fx.cli_common import (
    HTML_FILE,
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
    Stages,
    TrustRemoteCode,
    check_step,
    check_writable,
    default_folder,
    progress,
    render,
    write_review,
)
from taxbreak_fx.errors import EXIT_OK
from taxbreak_fx.predict import check_names, on_host
from taxbreak_fx.report.format import plain
from taxbreak_fx.request import ReviewRequest


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    target: Annotated[
        str, typer.Option(metavar="PROFILE", help="Built-in hardware profile, or the path of a profile.json.")
    ] = "h200",
    phase: Phase = "decode",
    batch: Batch = 1,
    seq_len: SeqLen = 512,
    dtype: Dtype = "bfloat16",
    cache: Cache = "static",
    attn_implementation: Implementation = None,
    experts_implementation: Implementation = None,
    variants: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Separated by commas, or repeated; default: all.")
    ] = None,
    host_score: Annotated[
        float | None,
        typer.Option(
            metavar="US", help="Of the host to predict for, as a review of it shows it; default: the profile's."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the recording, and for the plan of Inductor.")] = 600.0,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; default: taxbreak-out/MODEL-PHASE-bBATCH-sSEQ-predicted.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the review as JSON, not as text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no closing line on stderr.")] = False,
) -> int:
    """Predict a model's step in every variant on a GPU that is not here; needs no GPU, runs nothing."""
    check_step(model, batch, seq_len, seed)
    names = check_names([name.strip() for item in variants or () for name in item.split(",") if name.strip()])
    profile = on_host(hardware.find(target), host_score)
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
    folder = out if out is not None else Path(f"{default_folder(request)}-predicted")
    check_writable(folder)
    from taxbreak_fx.dry_run_predict import predict_apart, stages

    with progress(quiet or not sys.stderr.isatty()) as on_event:
        begin = Stages(on_event, stages([""], names)).begin
        (result,) = predict_apart({"": request}, profile, names, timeout, begin)
    try:
        write_review(result, folder)
    finally:
        sys.stdout.write(render(result, "json" if json else "text"))
    if not quiet:
        where = plain(str(folder / REVIEW_FILE))
        print(f"taxbreak: wrote {where}, {MARKDOWN_FILE}, {HTML_FILE}", file=sys.stderr)
    return EXIT_OK
