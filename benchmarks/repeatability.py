"""Claim: a variant reviewed against itself never reports a change.

    python benchmarks/repeatability.py [--out benchmarks/results] [--model gpt2] [--device auto] [--reviews 20]
                                       [--processes 10] [--budget 1] [--jobs 1]

(a) Eager against eager, ``--reviews`` times in one process, by the timing stage and the comparison of any variant.
(b) HDBI and T_host over ``--processes`` fresh processes: a fact about the machine, with no goal.
Writes OUT/repeatability.json = {claim, goal, unit, value, met, machine, rows}, after (a) and again after every process.
``--reviews 0`` and ``--processes 0`` keep what that file already holds of (a) and of (b).  With --jobs, processes start
side by side; they take turns on the device.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.compare import UNCHANGED, compare
from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.models import load, resolve_device
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.recording import Recording, Timing
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Outcome, Stage, assemble, plan, recording, with_floor
from taxbreak_fx.supervisor import supervise

CLAIM = "a variant reviewed against itself never reports a change"
AGAIN = "eager again"
TERMS = ("ft_us", "ct_us", "device_us", "wall_us")


def changes(comparison: Comparison) -> list[str]:
    """What a review would print as a change: its verdict, what it calls worse, and terms beyond their noise."""
    removed = comparison.removed
    found = [] if comparison.verdict == UNCHANGED else [comparison.verdict]
    found += comparison.worse
    for term in TERMS:
        value = getattr(removed, term)
        if value is not None and abs(value) > removed.noise_us[term]:
            found.append(f"{term} {value:+.1f} (noise {removed.noise_us[term]:.1f})")
    return found


def against_itself(request: ReviewRequest, reviews: int) -> tuple[list[dict[str, Any]], Review]:
    """One row per review of eager against eager, and the review of eager that they are set against."""
    device = resolve_device(request.device)
    runner = Runner(load(request, device), device, request.budget_s)
    stages = plan(("eager",), device)
    # All timing comes before the first trace, which leaves the process slower.
    outcomes = [runner.run(stage) for stage in stages if stage.kind not in ("trace", "floor")]
    timing = Stage(kind="timing", variant="eager")
    again = [done(runner.run(timing)) for _ in range(reviews)]
    outcomes += [runner.run(stage) for stage in stages if stage.kind in ("trace", "floor")]
    review = assemble(outcomes, ("eager",), device)
    found = {(outcome.stage.kind, outcome.stage.variant): outcome for outcome in outcomes}
    machine = with_floor(review.machine, found.get(("floor", None)), device)
    base = recording("eager", found, device, machine.calibration)
    assert base.timing is not None
    rows = [row(number, base, decompose(base, base), timed) for number, timed in enumerate(again)]
    return rows, review


def done(outcome: Outcome) -> Timing:
    """The timing of a stage that must not fail.  Raises ``RuntimeError`` with its reason when it did."""
    if outcome.failure is not None:
        raise RuntimeError(f"{outcome.stage.title}: {outcome.failure}")
    value = outcome.value()
    assert isinstance(value, Timing)
    return value


def row(number: int, base: Recording, eager: Variant, timed: Timing) -> dict[str, Any]:
    """Eager as timed once more, with the one trace, against eager."""
    timed = msgspec.structs.replace(timed, variant=AGAIN)
    variant = decompose(msgspec.structs.replace(base, variant=AGAIN, timing=timed), base)
    assert base.timing is not None
    found = compare(eager, variant, {"eager": base.timing, AGAIN: timed})
    assert found.wall_ratio is not None
    return {
        "what": f"A/A review {number + 1}",
        "wall_ratio": found.wall_ratio.median,
        "low": found.wall_ratio.low,
        "high": found.wall_ratio.high,
        "host_us": statistics.median(timed.host_us),
        "pairs": found.wall_ratio.samples,
        "removed_us": {term: getattr(found.removed, term) for term in TERMS},
        "noise_us": found.removed.noise_us,
        "changes": changes(found),
    }


def fresh_processes(request: ReviewRequest, processes: int, jobs: int) -> Iterator[dict[str, Any]]:
    """HDBI and T_host of eager, one row per fresh process, with the score of its host meanwhile."""

    def fresh(number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            review = supervise(request, Path(folder), lambda event: None)
        eager, score = review.variant("eager"), review.machine.calibration.host_reference
        return {
            "what": f"process {number + 1}",
            "date": review.machine.date,
            "host_us": eager.t_host_us.median if eager.t_host_us else None,
            "hdbi": eager.breakdown.hdbi if eager.breakdown else None,
            "host_reference_us": score.us if score else None,
            "reason": eager.reason or (eager.breakdown.unmeasured.get("hdbi") if eager.breakdown else None),
        }

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(fresh, range(processes))


def spread(rows: list[dict[str, Any]], name: str) -> float | None:
    """Coefficient of variation of ``name`` over the processes that measured it; None for fewer than two."""
    values = [line[name] for line in rows if line[name] is not None]
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else None


def main() -> None:
    """Run both parts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--reviews", type=int, default=20)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timed pairs per review")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    options = parser.parse_args()
    request = ReviewRequest(
        model=options.model,
        phase="decode",
        device=options.device,
        seq_len=options.seq_len,
        variants=("eager",),
        budget_s=options.budget,
    )
    path = options.out / "repeatability.json"
    before = msgspec.json.decode(path.read_bytes()) if path.exists() else {"rows": []}
    facts = [line for line in before["rows"] if "wall_ratio" not in line]
    if options.reviews:
        rows, review = against_itself(request, options.reviews)
        keys = ("what", "wall_ratio", "low", "high")
        shown = [[*(line[key] for key in keys), "; ".join(line["changes"])] for line in rows]
        print(tabulate(shown, headers=(*keys, "changes reported"), floatfmt=".4f"), flush=True)
        model = f"{review.model} {review.step.phase}, {review.step.dtype}, sequence {review.step.seq_len}"
        known = {"model": model, "machine": msgspec.to_builtins(review.machine)}
    else:
        rows = [line for line in before["rows"] if "wall_ratio" in line]
        known = {key: before.get(key) for key in ("model", "machine")}
    if options.processes:
        facts = []
    result = write(path, known, rows, facts)
    for line in fresh_processes(request, options.processes, options.jobs):
        facts.append(line)
        print(line, flush=True)
        result = write(path, known, rows, facts)
    print(f"{CLAIM}: {result['value']} of {len(rows)} did, goal 0")
    print(f"over {len(facts)} fresh processes: CV of T_host {result['host_cv']}, of HDBI {result['hdbi_cv']}")


def write(path: Path, known: dict[str, Any], rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace the result file by what is known so far; returns what it holds.  ``known``: model and machine of (a)."""
    wrong = sum(bool(line["changes"]) for line in rows)
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": f"A/A reviews of {len(rows)} that report a change",
        "value": wrong,
        "met": wrong == 0 and len(rows) >= 20,
        "host_cv": spread(facts, "host_us"),
        "hdbi_cv": spread(facts, "hdbi"),
        "processes": len(facts),
        **known,
        "rows": rows + facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return result


if __name__ == "__main__":
    main()
