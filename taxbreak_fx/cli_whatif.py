"""The commands that predict, and the one that measures what predictions need: calibrate, fusion, whatif."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from taxbreak_fx import schema
from taxbreak_fx.cli_common import (
    INTERRUPTED_NOTE,
    MODEL_HELP,
    Batch,
    Cache,
    Dtype,
    Implementation,
    Phase,
    Seed,
    SeqLen,
    Stages,
    TrustRemoteCode,
    alone,
    check_step,
    check_writable,
    complain,
    progress,
    render,
    width,
    write_review,
)
from taxbreak_fx.cli_whatif_step import SWEEP_FILE, sweep_text
from taxbreak_fx.errors import EXIT_INTERRUPTED, EXIT_OK, OutputError, UsageError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.model import Review
from taxbreak_fx.report.format import plain
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.whatif_sweep import Sweep, encode


def calibrate(
    out: Annotated[Path, typer.Option(metavar="PROFILE_JSON", help="File of the profile; replaced if it exists.")],
    budget: Annotated[float, typer.Option(help="Seconds after which nothing new is begun.")] = 260.0,
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="auto: cuda where there is one.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Of the profile; default: the device's.")] = None,
    from_review: Annotated[
        list[Path] | None,
        typer.Option(metavar="REVIEW_JSON", help="Measure nothing: take the costs from this review; repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no closing line on stderr.")] = False,
) -> int:
    """Measure what host work, launches and kernels cost here, for predictions elsewhere."""
    if not (math.isfinite(budget) and budget > 0):
        raise UsageError(f"--budget must be a positive number of seconds, got {budget:g}")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name {name!r} is no name: use letters, digits, dots, dashes and underscores")
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder: name a file in it, {out / 'profile.json'}")
    check_writable(out.parent)
    from taxbreak_fx import hardware
    from taxbreak_fx.models import resolve_device
    from taxbreak_fx.profile_measure import measure_profile
    from taxbreak_fx.profile_measure_text import profile_text

    if from_review:
        profile = _of_reviews(from_review, name, quiet)
    else:
        target = resolve_device(device)
        if target == "cpu":
            print("taxbreak: no CUDA device is used: only the parts of the host are measured", file=sys.stderr)
        with alone(target), progress(quiet or not sys.stderr.isatty()) as on_event:
            profile = measure_profile(target, name, budget, on_event)
    try:
        hardware.save(profile, out)
    finally:
        sys.stdout.write(profile_text(profile))
    if INTERRUPTED_NOTE in profile.notes:
        return complain(f"interrupted; what was measured is saved in {out}", EXIT_INTERRUPTED)
    if not quiet:
        print(f"taxbreak: wrote {plain(str(out))}", file=sys.stderr)
    return EXIT_OK


def _of_reviews(paths: list[Path], name: str | None, quiet: bool) -> Profile:
    from taxbreak_fx.profile_measure_reviews import check_reviews, profile_of_reviews
    from taxbreak_fx.profile_measure_sources import PLANNED, RECORDED, sources_of, stage

    reviews = [schema.load(path) for path in paths]
    check_reviews(reviews)  # before the minutes that the steps take
    names = tuple(stage(number, what) for number in range(len(reviews)) for what in (RECORDED, PLANNED))
    with progress(quiet or not sys.stderr.isatty()) as on_event:
        return profile_of_reviews(sources_of(reviews, Stages(on_event, names).begin), name)


def fusion(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    phase: Phase = "decode",
    batch: Batch = 1,
    seq_len: SeqLen = 512,
    dtype: Dtype = "bfloat16",
    cache: Cache = "static",
    attn_implementation: Implementation = None,
    experts_implementation: Implementation = None,
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="auto: cuda where there is one.")] = "auto",
    review: Annotated[
        Path | None, typer.Option(metavar="REVIEW_JSON", help="A review of the same step, to price the ops by.")
    ] = None,
    inductor: Annotated[bool, typer.Option(help="Compile the step, and compare with what Inductor fuses.")] = False,
    top: Annotated[int, typer.Option(help="Rows of groups, of misses and of blockers to print.")] = 10,
    trust_remote_code: TrustRemoteCode = False,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the whole document as JSON, not tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> int:
    """What fusing ops, and capturing the step in CUDA graphs, could save; needs no GPU, times nothing."""
    check_step(model, batch, seq_len, seed)
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    priced = None if review is None else schema.load(review)
    from taxbreak_fx.models import load, resolve_device
    from taxbreak_fx.report.fusion import fusion_text
    from taxbreak_fx.step_whatif import record_step
    from taxbreak_fx.whatif_fusion import encode, fusion_whatif
    from taxbreak_fx.whatif_prices import eager_of

    target = resolve_device(device)
    request = ReviewRequest(
        model=model,
        phase=phase,
        batch=batch,
        seq_len=seq_len,
        dtype=dtype,
        cache=cache,
        attn_implementation=attn_implementation,
        experts_implementation=experts_implementation,
        device=target,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    with progress(quiet or not sys.stderr.isatty()) as on_event:
        stages = Stages(on_event, ("load", "eager", "dynamo", *(("inductor",) if inductor else ())))
        stages.begin("load")
        workload = load(request, target)
        if priced is not None:
            eager_of(priced, workload.model, workload.step)  # before the minutes that a compiler may take
        recorded = record_step(workload, inductor, stages.begin)
    found = fusion_whatif(recorded, priced)
    sys.stdout.write(encode(found).decode() if json else fusion_text(found, top, width()))
    return EXIT_OK


def whatif(
    path: Annotated[Path, typer.Argument(metavar="REVIEW_JSON", help="A saved review.json of a CUDA device.")],
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="The step as CUDA graphs.")] = False,
    cpu_speed: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="A host so many times as fast: 1.2, or 0.8 for a slower one.")
    ] = None,
    no_guards: Annotated[bool, typer.Option("--no-guards", help="Compiled variants without their guards.")] = False,
    batch: Annotated[
        str | None, typer.Option(metavar="N[,N…]", help="Another batch; several: a table of what turns between them.")
    ] = None,
    experts_implementation: Implementation = None,
    attn_implementation: Implementation = None,
    profile: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Hardware profile that a changed step is predicted with.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="To change; repeated for more; default: all that this is about."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to record, or to plan, a changed step once.")] = 600.0,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path | None, typer.Option(help="Folder for review.json, report.md, report.html.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the review, or the table of batches, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> int:
    """Predict from a saved review what its step would take otherwise: in CUDA graphs, at another batch, …"""
    from taxbreak_fx.cli_whatif_step import Asked, step_whatifs
    from taxbreak_fx.whatif import Change, check
    from taxbreak_fx.whatif import whatif as predict
    from taxbreak_fx.whatif_step import StepChange
    from taxbreak_fx.whatif_sweep import batches_of

    change = Change(no_guards=no_guards, cuda_graph=cuda_graph, cpu_speed=cpu_speed)
    batches = () if batch is None else batches_of(batch)
    step = StepChange(experts_implementation=experts_implementation, attn_implementation=attn_implementation)
    if not batches and step == StepChange():
        check(change)
        if profile is not None:
            raise UsageError("--profile is for --batch, --experts-implementation and --attn-implementation")
        result = predict(schema.load(path), change, variant or (), str(path))
        return _deliver(result, out, json, None)
    asked = Asked(
        step=step, batches=batches, change=change, names=tuple(variant or ()), profile=profile or "h200",
        timeout_s=timeout, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with progress(quiet or not sys.stderr.isatty()) as on_event:
        result, table = step_whatifs(schema.load(path), asked, str(path), out, on_event)
    return _deliver(result, out, json, table)


def _deliver(result: Review, out: Path | None, json: bool, table: Sweep | None) -> int:
    """Write the files and print: the table of batches, where there is one, in place of the review."""
    if out is not None:
        check_writable(out)
    try:
        if out is not None:
            write_review(result, out)
            if table is not None:
                schema.write(out / SWEEP_FILE, encode(table))
    finally:
        if table is None:
            sys.stdout.write(render(result, "json" if json else "text"))
        else:
            sys.stdout.write(encode(table).decode() if json else sweep_text(table, width()))
    return EXIT_OK
