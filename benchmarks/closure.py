"""Claim: the clocked pieces of every variant's step add up to its un-instrumented issue time.

    python benchmarks/spine.py && python benchmarks/closure.py [--out benchmarks/results]

closure_error = (Σ of the clocked pieces − T_issue) ÷ T_issue, raw; the goal is at most 2 % or 10 µs, whichever is more.
Reads the reviews that spine.py left in OUT and writes OUT/closure.json = {claim, goal, unit, value, met, not_run,
machine, rows}.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
from spine import CASES, missing
from tabulate import tabulate

from taxbreak_fx.model import Review, Variant

RELATIVE, ABSOLUTE_US = 0.02, 10.0
CLAIM = "the clocked pieces of every variant add up to its un-instrumented T_issue within max(2 %, 10 µs)"


def row(case: str, variant: Variant) -> dict[str, Any]:
    """One line of the table; ``error_us`` is closure_error × T_issue."""
    breakdown = variant.breakdown
    error = breakdown.closure_error if breakdown else None
    issue = variant.issue_us
    error_us = None if error is None or issue is None else error * issue
    reason = variant.reason or (breakdown.unmeasured.get("closure_error") if breakdown else None)
    return {
        "case": case,
        "variant": variant.name,
        "status": variant.status,
        "reason": reason,
        "host_us": variant.t_host_us.median if variant.t_host_us else None,
        "wait_us": variant.t_wait_us,
        "issue_us": issue,
        "closure_error": error,
        "error_us": error_us,
        "ft_parts": dict(breakdown.ft_parts) if breakdown else {},
        "met": error is not None and error_us is not None and (abs(error) <= RELATIVE or abs(error_us) <= ABSOLUTE_US),
        "notes": variant.notes,
    }


def main() -> None:
    """Summarise the reviews that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / f"spine-{name}.json" for name in CASES}
    reviews = {name: Review.load(path) for name, path in files.items() if path.exists()}
    rows = [row(name, variant) for name, review in reviews.items() for variant in review.variants]
    able = [line for line in rows if line["status"] == "ok"]
    value = sum(not line["met"] for line in able)
    not_run = [line for name in CASES for line in missing(name, reviews.get(name))]
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": "variants that ran and do not close",
        "value": value,
        "met": value == 0 and not not_run,
        "not_run": not_run,
        "machine": {name: msgspec.to_builtins(review.machine) for name, review in reviews.items()},
        "rows": rows,
    }
    (options.out / "closure.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = ("case", "variant", "status", "host_us", "wait_us", "issue_us", "closure_error", "error_us", "met",
             "reason")  # fmt: skip
    table = [[str(line[key])[:60] if key == "reason" else line[key] for key in shown] for line in rows]
    print(tabulate(table, headers=shown, floatfmt=".3g"))
    print(f"{CLAIM}: {value} of {len(able)} do not; not run: {', '.join(not_run) or 'none'}")


if __name__ == "__main__":
    main()
