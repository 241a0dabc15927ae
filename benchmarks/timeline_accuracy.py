"""Claim: the simulated timeline meets the measured T_wall of a step, and beats max(T_issue, device) + s where host and
device take about as long.

    python benchmarks/timeline_accuracy.py [--out benchmarks/results] [--only CASE ...] [--journals FOLDER] [--again]
                                           [--budget 1] [--timeout 120] [--jobs 1] [--quick]

A case that spine.py reviewed (batch 1) is read from OUT/spine-CASE.json, if that review holds simulated steps.  Reviews
each other case without the stage that splits guards from frame, and keeps the rows of cases run before.  With --quick
no variant is measured that has to be compiled; with --jobs, cases start and compile side by side (they take turns on
the device).  With --journals every stage's result stays under FOLDER/CASE/journal; --again makes the rows anew
from there, without a GPU.
The constants of a case are of its own calibration, and nothing is fitted to the steps.
Writes the reviews that it measured to OUT/timeline-CASE.json, and
OUT/timeline_accuracy.json = {claim, goal, unit, value, met, not_run, machine, rows}.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import msgspec
from tabulate import tabulate

from taxbreak_fx import stages, supervisor
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Stage, assemble, outcomes_in

CLAIM = "the simulated timeline meets the measured T_wall, and beats max(T_issue, device) + s at the crossover"
MEDIAN_GOAL, WORST_GOAL, FEWEST = 0.01, 0.05, 20
CROSSOVER = (0.5, 2.0)  # host time within these multiples of device time
QUICK, COMPILED = ("eager", "eager-graph"), ("eager", "inductor", "reduce-overhead")


def _cases() -> dict[str, ReviewRequest]:
    """Batches that lead each model from host-bound to device-bound; compiled variants, which take longer, for some."""
    found: dict[str, ReviewRequest] = {}

    def add(
        name: str, model: str, phase: Literal["prefill", "decode"], batches: Sequence[int], compiled: Sequence[int]
    ) -> None:
        for batch in batches:
            variants = tuple(dict.fromkeys((*QUICK, *COMPILED))) if batch in compiled else QUICK
            experts = "grouped_mm" if model.startswith("OLMoE") else None
            found[f"{name}-b{batch}"] = ReviewRequest(
                model=model, phase=phase, batch=batch, variants=variants, experts_implementation=experts, device="cuda"
            )

    add("gpt2-prefill", "gpt2", "prefill", (1, 2, 4, 8, 16, 32), (1, 8))
    add("gpt2-decode", "gpt2", "decode", (1, 32), (1,))
    add("llama-prefill", "Llama-3.2-1B", "prefill", (1, 2, 4, 8), (1,))
    add("llama-decode", "Llama-3.2-1B", "decode", (1, 8, 32), (8,))
    add("olmoe-prefill", "OLMoE-1B-7B", "prefill", (1, 4), ())
    add("olmoe-decode", "OLMoE-1B-7B", "decode", (1, 8), (1,))
    add("bert", "BERT-base", "prefill", (1, 8, 32), (8,))
    add("vit", "ViT-base", "prefill", (1, 8, 32), (8,))
    return found


CASES = _cases()
# Cases whose step is one of spine.py's, which reviews it with more variants.
SPINE = {
    "gpt2-prefill-b1": "gpt2-prefill",
    "gpt2-decode-b1": "gpt2-decode",
    "llama-prefill-b1": "llama-3.2-1b-prefill",
    "llama-decode-b1": "llama-3.2-1b-decode",
    "olmoe-prefill-b1": "olmoe-prefill-grouped",
    "olmoe-decode-b1": "olmoe-decode-grouped",
    "bert-b1": "bert",
    "vit-b1": "vit",
}


def without_frame(variants: Sequence[str], device: Literal["cuda", "cpu"], generates: bool = False) -> list[Stage]:
    """The stages of a review but for the one that the timeline has no use for."""
    return [stage for stage in stages.plan(variants, device, generates) if stage.kind != "frame"]


def measure(name: str, request: ReviewRequest, folder: Path) -> Review | None:
    """Run one case, or print why there is no review."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        review = supervisor.supervise(request, folder, lambda event: None)
    except TaxbreakError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return review


def again(request: ReviewRequest, folder: Path) -> Review | None:
    """The review of the stage results kept in ``folder``; None when there are none."""
    outcomes = outcomes_in(folder / "journal")
    return assemble(outcomes, request.variants, "cuda") if outcomes else None


def reviewed(name: str, folder: Path) -> Review | None:
    """What spine.py left in ``folder`` of this case; None where it is of another step or holds no simulated one."""
    path = folder / f"spine-{SPINE.get(name)}.json"
    if not path.exists():
        return None
    review, request = Review.load(path), CASES[name]
    same = (review.step.phase, review.step.batch) == (request.phase, request.batch)
    simulated = any(one.exposed is not None and one.exposed.wall_us is not None for one in review.variants)
    return review if same and simulated else None


def rows_of(case: str, review: Review) -> list[dict[str, Any]]:
    """One row per variant of the case."""
    return [row(case, review, variant) for variant in review.variants]


def row(case: str, review: Review, variant: Variant) -> dict[str, Any]:
    """One line of the table: microseconds, errors relative to the measured T_wall, counts."""
    exposed, terms = variant.exposed, variant.breakdown
    simulated = exposed is not None and exposed.wall_us is not None
    reason = variant.reason or (None if exposed is None else exposed.unmeasured.get("wall_us"))
    host, device = variant.issue_us, variant.device_active_us
    return {
        "case": case,
        "model": review.model,
        "phase": review.step.phase,
        "batch": review.step.batch,
        "variant": variant.name,
        "status": variant.status,
        "reason": None if simulated else reason or "not simulated by the version that made the review",
        "wall_us": variant.t_wall_us.median if variant.t_wall_us else None,
        "wall_interval_us": [variant.t_wall_us.low, variant.t_wall_us.high] if variant.t_wall_us else None,
        "simulated_us": exposed.wall_us if exposed else None,
        "error": exposed.error if exposed else None,
        "naive_us": exposed.naive_us if exposed else None,
        "naive_error": exposed.naive_error if exposed else None,
        "idle_us": exposed.idle_us if exposed else None,
        "waterfall_us": dict(exposed.waterfall) if exposed else {},
        "floors_us": dict(exposed.floors_us) if exposed else {},
        "host_us": host,
        "device_us": device,
        "crossover": None if not host or not device else CROSSOVER[0] <= host / device <= CROSSOVER[1],
        "launches": variant.launches,
        "kernels": variant.kernels,
        "kt_source": terms.kt_source if terms else None,
        "closure_error": terms.closure_error if terms else None,
    }


def spread(rows: Sequence[dict[str, Any]], field: str) -> dict[str, Any]:
    """Median and largest |error| of ``rows``, and how many there are."""
    errors = [abs(line[field]) for line in rows if line[field] is not None]
    return {
        "median": statistics.median(errors) if errors else None,
        "largest": max(errors, default=None),
        "rows": len(errors),
    }


def summary(rows: Sequence[dict[str, Any]], not_run: list[str]) -> dict[str, Any]:
    """Both models over all rows and over those at the crossover; the goal is on the timeline over all."""
    crossing = [line for line in rows if line["crossover"]]
    own = spread(rows, "error")
    at, naive = spread(crossing, "error"), spread(crossing, "naive_error")
    beats = at["median"] is not None and at["median"] < naive["median"] and at["largest"] < naive["largest"]
    cases = len({line["case"] for line in rows if line["error"] is not None})
    within = own["median"] is not None and own["median"] <= MEDIAN_GOAL and own["largest"] <= WORST_GOAL
    return {
        "value": own["median"],
        "met": bool(within and beats and cases >= FEWEST and not not_run),
        "largest": own["largest"],
        "cases": cases,
        "timeline": own,
        "naive": spread(rows, "naive_error"),
        "timeline_at_crossover": at,
        "naive_at_crossover": naive,
    }


def main() -> None:
    """Measure what is asked for, keep what was measured before, and summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=None)
    parser.add_argument("--journals", type=Path, default=None, help="keep every stage's result under this folder")
    parser.add_argument("--again", action="store_true", help="no GPU: make the rows anew from --journals")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timed pairs per variant")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds one stage may take")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--quick", action="store_true", help="only variants that need no compiler")
    options = parser.parse_args()
    if options.again and options.journals is None:
        parser.error("--again needs the --journals that an earlier run kept")
    target = options.out / "timeline_accuracy.json"
    before = msgspec.json.decode(target.read_bytes()) if target.exists() else {"rows": [], "machine": {}}
    rows = {name: [line for line in before["rows"] if line["case"] == name] for name in CASES}
    machines: dict[str, Any] = dict(before["machine"])

    def case(name: str) -> Review | None:
        request = msgspec.structs.replace(CASES[name], budget_s=options.budget, timeout_s=options.timeout)
        if options.quick:
            request = msgspec.structs.replace(request, variants=QUICK)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if options.journals is None else options.journals / name
            known = reviewed(name, options.out)
            if known is not None:
                return known
            review = again(request, folder) if options.again else measure(name, request, folder)
        if review is not None:
            review.save(options.out / f"timeline-{name}.json")
        return review

    with mock.patch.object(supervisor, "plan", without_frame), ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(case, name): name for name in (CASES if options.only is None else options.only)}
        for done in as_completed(running):
            name, review = running[done], done.result()
            if review is None:
                continue
            rows[name], machines[name] = rows_of(name, review), msgspec.to_builtins(review.machine)
            write(target, rows, machines)  # now: a run that is broken off keeps what it has
            show(rows[name])
    result = write(target, rows, machines)
    show([line for lines in rows.values() for line in lines])
    for name in ("timeline", "naive", "timeline_at_crossover", "naive_at_crossover"):
        print(name, result[name])
    print(
        f"{CLAIM}: median {result['value']}, largest {result['largest']}, {result['cases']} cases; met {result['met']}"
    )


def write(target: Path, rows: dict[str, list[dict[str, Any]]], machines: dict[str, Any]) -> dict[str, Any]:
    """Replace the result file; returns what it holds."""
    lines = [line for name in CASES for line in rows[name]]
    held = {(line["case"], line["variant"]) for line in lines}
    not_run = [
        f"{name}: {variant}" for name in CASES for variant in CASES[name].variants if (name, variant) not in held
    ]
    found = summary(lines, not_run)
    result = {
        "claim": CLAIM,
        "goal": MEDIAN_GOAL,
        "largest_goal": WORST_GOAL,
        "unit": "|simulated ÷ measured T_wall − 1|, median over rows",
        **found,
        "not_run": not_run,
        "machine": machines,
        "rows": lines,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return result


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Print the rows."""
    shown = ("case", "variant", "wall_us", "simulated_us", "error", "naive_us", "naive_error", "crossover", "host_us",
             "device_us", "reason")  # fmt: skip
    table = [[str(line[key])[:50] if key == "reason" else line[key] for key in shown] for line in lines]
    print(tabulate(table, headers=shown, floatfmt=".4g"), flush=True)


if __name__ == "__main__":
    main()
