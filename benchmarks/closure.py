"""Claim: the clocked pieces of every variant's step add up to its un-instrumented issue time.

    python benchmarks/closure.py [--out benchmarks/results] [--budget 1] [--timeout 180] [--only CASE ...]

closure_error = (Σ of the clocked pieces − T_issue) ÷ T_issue, raw; the goal is at most 2 % or 10 µs, whichever is more.
Writes OUT/closure.json = {claim, goal, unit, value, met, not_run, machine, rows}; cases run earlier keep their rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.model import Variant
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.supervisor import supervise

RELATIVE, ABSOLUTE_US = 0.02, 10.0
CLAIM = "the clocked pieces of every variant add up to its un-instrumented T_issue within max(2 %, 10 µs)"


def _case(model: str, phase: Any, experts: str | None = None) -> ReviewRequest:
    return ReviewRequest(model=model, phase=phase, experts_implementation=experts, device="cuda")


CASES = {
    "gpt2-prefill": _case("gpt2", "prefill"),
    "gpt2-decode": _case("gpt2", "decode"),
    "llama-3.2-1b-prefill": _case("Llama-3.2-1B", "prefill"),
    "llama-3.2-1b-decode": _case("Llama-3.2-1B", "decode"),
    "olmoe-grouped-prefill": _case("OLMoE-1B-7B", "prefill", "grouped_mm"),
    "olmoe-grouped-decode": _case("OLMoE-1B-7B", "decode", "grouped_mm"),
    "olmoe-eager-prefill": _case("OLMoE-1B-7B", "prefill", "eager"),
    "olmoe-eager-decode": _case("OLMoE-1B-7B", "decode", "eager"),
    "bert": _case("BERT-base", "prefill"),
    "vit": _case("ViT-base", "prefill"),
}


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
    """Run the chosen cases, keep the others' rows, and summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timed pairs per variant")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds one stage may take")
    parser.add_argument("--variants", default="", help="comma-separated; all by default")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=None)
    options = parser.parse_args()
    target = options.out / "closure.json"
    old = msgspec.json.decode(target.read_bytes()) if target.exists() else {"rows": [], "machine": {}}
    rows, machine = list(old["rows"]), dict(old["machine"])
    variants = tuple(filter(None, options.variants.split(",")))
    for name in options.only if options.only is not None else CASES:
        request = msgspec.structs.replace(
            CASES[name], budget_s=options.budget, timeout_s=options.timeout, variants=variants
        )
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as folder:
                review = supervise(request, Path(folder), lambda event: None)
        except TaxbreakError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        rows = [line for line in rows if line["case"] != name] + [row(name, item) for item in review.variants]
        machine[name] = msgspec.to_builtins(review.machine)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    able = [line for line in rows if line["status"] == "ok"]
    value = sum(not line["met"] for line in able)
    not_run = [name for name in CASES if name not in machine]
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": "variants that ran and do not close",
        "value": value,
        "met": value == 0 and not not_run,
        "not_run": not_run,
        "machine": machine,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = (
        "case",
        "variant",
        "status",
        "host_us",
        "wait_us",
        "issue_us",
        "closure_error",
        "error_us",
        "met",
        "reason",
    )
    table = [[str(line[key])[:60] if key == "reason" else line[key] for key in shown] for line in rows]
    print(tabulate(table, headers=shown, floatfmt=".3g"))
    print(f"{CLAIM}: {value} of {len(able)} do not; not run: {', '.join(not_run) or 'none'}")


if __name__ == "__main__":
    main()
