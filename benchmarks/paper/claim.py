"""What every claim's result is made of, how ours is held against a published figure, and how it is written.

``python -m benchmarks.paper.NAME [--out FOLDER]`` prints the claim's table and writes FOLDER/paper_NAME.json =
{claim, goal, unit, value, met, reason, machine, rows}.  ``value`` and ``met`` are null, with the reason, while a cell
that they need is missing.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from tabulate import tabulate

from benchmarks.paper.cells import RESULTS, Store
from benchmarks.paper.published import FIGURES
from taxbreak_fx.machine import Machine
from taxbreak_fx.model import Review
from taxbreak_fx.record import Record

NOT_RUN = "not run yet"
TOLERANCE = 0.10  # of a published figure: within it, or within its own range, ours agrees
INDEX_TOLERANCE = 0.05  # of HDBI, absolute

Agreement = Literal["agrees", "differs", "other conditions", "not run", "not published"]
# The fixed list: what a figure that is not the published one is put down to.
REASONS = {
    "not run": "the cell has not been measured yet",
    "failed": "the cell was tried and could not be measured",
    "not kept": "the committed review is of a version that kept no timeline; the cell has to be measured again",
    "shape": "ours is of another batch or sequence length than the published figure",
    "unknown shape": "at which batch and sequence length the published figure was measured is not known",
    "experts": "transformers 5 runs the experts otherwise than the version that the paper measured",
    "device": "the published figure is of another GPU",
    "machine": "a virtual machine with another host CPU: microseconds of host and driver do not carry over",
    "tracer": "the published figure was traced with nsys, ours is un-instrumented or traced with CUPTI",
    "versions": "other torch and library releases launch other kernels for the same model",
    "unexplained": "no cause was isolated",
}


class Row(Record, frozen=True, kw_only=True):
    """Ours beside a published figure (``figure`` names it in ``published``), or alone.

    ``ours`` is in ``unit``; null with a ``reason`` (of ``REASONS``) and its ``detail``.  ``conditions``: what ours was
    measured on.
    """

    what: str
    figure: str | None = None
    published: str | None = None
    source: str | None = None
    ours: float | None
    unit: str
    agreement: Agreement
    reason: str | None = None
    detail: str | None = None
    conditions: str | None = None
    facts: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            raise ValueError(f"{self.what}: {self.reason!r} is no reason of the list")
        if (self.agreement in ("agrees", "not published")) == (self.reason is not None):
            raise ValueError(f"{self.what}: {self.agreement} with reason {self.reason!r}")
        if (self.ours is None) != (self.agreement == "not run"):
            raise ValueError(f"{self.what}: {self.agreement} with {self.ours!r}")


class Claim(Record, frozen=True, kw_only=True):
    """The result of one claim; ``reason`` says why ``value`` is null."""

    claim: str
    goal: float
    unit: str
    value: float | None
    met: bool | None
    reason: str | None = None
    machine: dict[str, dict[str, Any]]
    rows: list[Row]

    def __post_init__(self) -> None:
        if not (self.value is None) == (self.met is None) == (self.reason is not None):
            raise ValueError(f"{self.claim}: value {self.value!r}, met {self.met!r}, reason {self.reason!r}")


def agrees(figure: str, ours: float) -> bool:
    """Whether ``ours`` lies within the published range, widened by the tolerance of its kind."""
    one = FIGURES[figure]
    if one.unit == "HDBI":
        return one.low - INDEX_TOLERANCE <= ours <= one.high + INDEX_TOLERANCE
    widths = (TOLERANCE * abs(one.low), TOLERANCE * abs(one.high))
    return one.low - widths[0] <= ours <= one.high + widths[1]


def beside(
    what: str,
    figure: str,
    ours: float,
    conditions: str,
    cause: str,
    other: str | None = None,
    detail: str | None = None,
) -> Row:
    """Ours beside a published figure.  ``cause``: what a difference is put down to.  ``other``: why the two are not of
    the same conditions, so that neither agreement nor difference would mean anything."""
    one = FIGURES[figure]
    agreement: Agreement = "agrees" if agrees(figure, ours) else "differs"
    return Row(
        what=what,
        figure=figure,
        published=one.shown,
        source=one.source,
        ours=ours,
        unit=one.unit,
        agreement="other conditions" if other else agreement,
        reason=other or (None if agreement == "agrees" else cause),
        detail=detail,
        conditions=conditions,
    )


def lacking(what: str, figure: str | None, why: str, unit: str = "") -> Row:
    """A figure that we have not; ``why`` as ``Store`` gives it."""
    one = FIGURES[figure] if figure is not None else None
    return Row(
        what=what,
        figure=figure,
        published=one.shown if one else None,
        source=one.source if one else None,
        ours=None,
        unit=one.unit if one else unit,
        agreement="not run",
        reason="not run" if why == NOT_RUN else "not kept" if why == REASONS["not kept"] else "failed",
        detail=None if why in (NOT_RUN, REASONS["not kept"]) else why,
    )


def alone(what: str, ours: float | None, unit: str, conditions: str, **facts: Any) -> Row:
    """Ours where nothing is published; a null one needs ``lacking``."""
    return Row(what=what, ours=ours, unit=unit, agreement="not published", conditions=conditions, facts=facts)


def conditions(review: Review) -> str:
    """What a review was measured on, in a line."""
    step, machine = review.step, review.machine
    generated = f"{step.options['tokens']} tokens" if step.phase == "generate" else ""
    parts = [
        review.model,
        step.phase,
        generated,
        f"batch {step.batch}" if step.batch else "",
        f"sequence {step.seq_len}",
    ]
    parts += [f"{name.removesuffix('_implementation')} {step.options[name]}" for name in
              ("experts_implementation", "attn_implementation", "cache") if name in step.options]  # fmt: skip
    parts += [machine.device, f"torch {machine.torch}", machine.date[:10]]
    return ", ".join(part for part in parts if part and not part.endswith(" None"))


def short(file: str) -> str:
    """The name of a review in tables, from that of its file."""
    return file.removeprefix("paper/").removeprefix("spine-").removesuffix(".json")


def brief(machine: Machine) -> dict[str, Any]:
    """What of a machine a result file repeats; the review has the rest."""
    t_sys = machine.calibration.t_sys_us
    return {
        **{name: getattr(machine, name) for name in ("device", "host_cpu", "cores", "torch", "cuda", "driver")},
        "transformers": machine.transformers,
        "date": machine.date,
        "host_score": machine.calibration.host_score,
        "launch_us": machine.calibration.launch_us,
        "t_sys_p50_us": t_sys.p50 if t_sys else None,
    }


def finished(
    store: Store,
    claim: str,
    goal: float,
    unit: str,
    rows: Sequence[Row],
    value: Callable[[], tuple[float, bool]],
    needed: Iterable[Row] | None = None,
) -> Claim:
    """The claim over ``rows``: its value from ``value`` once none of ``needed`` (default: all) is missing."""
    missing = [row for row in (rows if needed is None else needed) if row.agreement == "not run"]
    machines = {file: brief(review.machine) for file, review in store.used.items()}
    if missing:
        causes = ", ".join(dict.fromkeys(str(row.reason) for row in missing))
        what = "one figure that it needs is" if len(missing) == 1 else f"{len(missing)} figures that it needs are"
        reason = f"{what} missing ({causes}){', the first' if len(missing) > 1 else ''}: {missing[0].what}"
        return Claim(
            claim=claim, goal=goal, unit=unit, value=None, met=None, reason=reason, machine=machines, rows=[*rows]
        )
    found, met = value()
    return Claim(claim=claim, goal=goal, unit=unit, value=found, met=met, machine=machines, rows=[*rows])


def show(number: float | None, unit: str = "") -> str:
    """A figure for tables: counts whole, indices with three decimals, changes in per cent."""
    if number is None:
        return "–"
    if unit.startswith("change"):
        return f"{100 * number:+.1f} %".replace("-", "−")
    if unit == "share":
        return f"{100 * number:.0f} %"
    if unit in ("kernels", "launches", "batch"):
        return f"{number:,.0f}"
    digits = f"{number:.3f}" if unit == "HDBI" else f"{number:,.3g}" if abs(number) < 1000 else f"{number:,.0f}"
    return digits.replace("-", "−")


def text(name: str, result: Claim) -> str:
    """The claim's table for a terminal, ours beside the published figure."""
    rows = [
        [_wrapped(row.what, 52), _wrapped(row.published or "–", 28), show(row.ours, row.unit), _wrapped(row.unit, 26),
         row.agreement, _wrapped(": ".join(filter(None, (row.reason, row.detail))), 60)]
        for row in result.rows
    ]  # fmt: skip
    table = tabulate(rows, ["what", "published", "ours", "unit", "agreement", "reason"], disable_numparse=True)
    met = {True: "met", False: "NOT met", None: f"not answered: {result.reason}"}[result.met]
    value = "null" if result.value is None else f"{result.value:.4g}"
    return f"{table}\n{name}: {result.claim}: {value} {result.unit} (goal {result.goal:g}), {met}\n"


def _wrapped(words: str, width: int) -> str:
    return "\n".join(textwrap.wrap(words, width))


def write(name: str, result: Claim, folder: Path) -> None:
    """FOLDER/paper_NAME.json, replaced in one step."""
    target = folder / f"paper_{name}.json"
    partial = target.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    partial.replace(target)


def run(name: str, doc: str | None, compute: Callable[[Store], Claim], argv: Sequence[str] | None = None) -> None:
    """The command line of one claim."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the reviews, and of the result")
    options = parser.parse_args(argv)
    result = compute(Store(options.out))
    write(name, result, options.out)
    print(text(name, result), flush=True)
