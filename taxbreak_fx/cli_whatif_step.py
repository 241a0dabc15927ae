"""The part of ``taxbreak whatif`` that predicts changed steps, and the text of a sweep over batches."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import msgspec

from taxbreak_fx import hardware
from taxbreak_fx.cli_common import Stages, check_writable
from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.record import Record
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, table
from taxbreak_fx.report.text import render
from taxbreak_fx.whatif import Change, check_speed
from taxbreak_fx.whatif_step import StepChange, changed_request, check_step, graphs_of, step_bases, step_whatif
from taxbreak_fx.whatif_sweep import Sweep, sweep
from taxbreak_fx.whatif_variant import AND

SWEEP_FILE = "sweep.json"
AS_IS = "as it is"


class Asked(Record, frozen=True, kw_only=True):
    """What one command asks: ``step`` at each of ``batches`` (none: at the review's own), and ``change`` besides."""

    step: StepChange
    batches: tuple[int, ...]
    change: Change
    names: tuple[str, ...]
    profile: str
    timeout_s: float
    trust_remote_code: bool


def step_whatifs(
    review: Review, asked: Asked, source: str, out: Path | None, on_event: Any
) -> tuple[Review, Sweep | None]:
    """The review of the changed step, at the largest of several batches; then also the table of all.

    Each distinct step is predicted once.  Raises as ``whatif_step`` and ``dry_run_predict.predict_apart`` do.
    """
    check_speed(asked.change)
    check_step(asked.step, review, source)
    steps = [msgspec.structs.replace(asked.step, batch=batch) for batch in asked.batches] or [asked.step]
    bases = [base.name for base in step_bases(review, asked.names, source)]
    profile = hardware.find(asked.profile)
    if out is not None:
        check_writable(out)  # before the minutes that planning takes
    from taxbreak_fx.dry_run_predict import predict_apart, stages
    from taxbreak_fx.profile_measure_sources import request_of

    own = msgspec.structs.replace(request_of(review), trust_remote_code=asked.trust_remote_code)
    wanted = [changed_request(own, step) for step in steps]
    if wanted == [own] and asked.change == Change():
        raise UsageError(f"nothing to change: the step of {source} has {', '.join(steps[0].labels)} already")
    titles = {own: AS_IS}
    for request, step in zip(wanted, steps, strict=True):
        titles.setdefault(request, ", ".join(step.labels))
    begin = Stages(on_event, stages(list(titles.values()), bases)).begin
    requests = {title: request for request, title in titles.items()}
    made = dict(zip(titles, predict_apart(requests, profile, bases, asked.timeout_s, begin), strict=True))
    graphs = graphs_of(profile)
    found = {
        step.batch: step_whatif(review, made[own], made[request], step, asked.change, asked.names, source, graphs)
        for request, step in zip(wanted, steps, strict=True)
    }
    last = found[steps[-1].batch]
    if len(steps) == 1:
        return last, None
    several = {batch: one for batch, one in found.items() if batch is not None}
    return last, sweep(review, several, bases)


def sweep_text(made: Sweep, width: int = 100) -> str:
    """The table, a line per variant that says where it turns, and the notes; ends in a newline."""
    step = made.step
    parts = [made.model, step.phase, *([f"sequence {step.seq_len}"] if step.seq_len is not None else []), step.dtype]
    columns = (
        Column("variant"), Column("batch", right=True), Column("wall", right=True), Column("host", right=True),
        Column("device", right=True), Column("T_Orchestration", right=True), Column("HDBI", right=True),
        Column("launches", right=True, priority=3), Column("kernels", right=True, priority=2), Column("bound by"),
    )  # fmt: skip
    cells = [
        [
            row.variant, str(row.batch), fmt.ms(row.t_wall_us), fmt.ms(row.t_host_us), fmt.ms(row.device_active_us),
            fmt.ms(row.orchestration_us), fmt.index(row.hdbi), fmt.count(row.launches), fmt.count(row.kernels),
            row.bound or MISSING,
        ]
        for row in made.rows
    ]  # fmt: skip
    as_reviewed = any(row.batch == step.batch and AND not in row.variant for row in made.rows)
    own = f"; {step.batch} as reviewed" if as_reviewed else ""
    whole = table(f"Batches (ms per step, predicted from batch {step.batch}{own})", columns, cells)
    lines, dropped = render(whole, width)
    head = whole.title + (f"; no room for: {', '.join(dropped)}" if dropped else "")
    found = [plain(line) for line in (", ".join(parts), f"reviewed on {made.device}", "", head, *lines, "")]
    told = [_bound(name, made) for name in dict.fromkeys(row.variant for row in made.rows)]
    missing = [row for row in made.rows if row.bound is None]
    told += [f"{MISSING} {row.variant}, batch {row.batch}: {row.unmeasured['bound']}" for row in missing]
    for line in (*told, "", *made.notes):
        found += textwrap.wrap(plain(line), width, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return "\n".join(found) + "\n"


def _bound(name: str, made: Sweep) -> str:
    """Where a variant turns from one side to the other."""
    rows = [row for row in made.rows if row.variant == name and row.bound is not None]
    turns = [f"{turn.to}-bound between batch {turn.batch} and {turn.next_batch}" for turn in made.turns
             if turn.variant == name]  # fmt: skip
    if not rows:
        return f"{name}: not known"
    if turns:
        return f"{name}: turns {', '.join(turns)}"
    return f"{name}: {rows[0].bound}-bound at every batch from {rows[0].batch} to {rows[-1].batch}"
