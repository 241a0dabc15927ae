"""Claim: predicting a step for a GPU that is absent takes seconds and little memory, however large the model.

    python benchmarks/predict_cost.py [--out benchmarks/results] [--only CASE ...]

Runs `taxbreak predict` in a fresh process, CUDA hidden: ``eager``, which is the recording under fake tensors alone, and
all variants, which is that with Inductor's plan and the ops under capture besides.  Seconds are of the whole command,
process start and compiler included, with whatever the compiler's caches hold; memory is the greatest sum of PSS over
the command and its children, read ten times a second from /proc (Linux).
Writes OUT/predict_cost.json = {claim, goal, unit, value, met, machine, rows}.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx import calibrate

CLAIM = "peak memory of `taxbreak predict`, of the eager variant of models up to 30 B parameters, which takes ≤ 60 s"
GOAL_MIB, GOAL_S = 2048.0, 60.0
MODELS = ("gpt2", "Llama-3.1-8B", "Qwen3-30B-A3B")
PHASES = ("decode", "prefill")
WHAT = ("eager", "all")
CASES = {f"{model}-{phase}-{what}": (model, phase, what) for model in MODELS for phase in PHASES for what in WHAT}
PERIOD_S = 0.1
TAXBREAK = (sys.executable, "-c", "import sys; from taxbreak_fx.cli import entry; sys.exit(entry())")


def family(pid: int) -> list[int]:
    """A process and all its descendants, as far as they live."""
    found, ahead = [], [pid]
    while ahead:
        one = ahead.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                ahead += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it ended while it was looked at
            continue
    return found


def pss_mib(pid: int) -> float:
    """A process's share of the memory it has mapped; 0 for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in text.splitlines())
    return next((int(line[1]) / 1024 for line in lines if line[0] == "Pss:"), 0.0)


def run(model: str, phase: str, what: str) -> dict[str, Any]:
    """One command: seconds, peak MiB and the counts it told, or the reason it failed."""
    with tempfile.TemporaryDirectory() as out:
        only = ("--variants", "eager") if what == "eager" else ()
        command = (*TAXBREAK, "predict", model, "--phase", phase, "--json", "--quiet", "--out", out, *only)
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        )
        peak = 0.0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(PERIOD_S):
                peak = max(peak, sum(map(pss_mib, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        told, complaint = process.communicate()
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
    row: dict[str, Any] = {"model": model, "phase": phase, "variants": what, "seconds": seconds, "peak_mib": peak}
    if process.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["no message"]
        return row | {"reason": f"exit code {process.returncode}: {lines[-1]}", "met": False}
    review = msgspec.json.decode(told)
    failed = [f"{one['name']}: {one['reason']}" for one in review["variants"] if one["status"] != "ok"]
    small = peak <= GOAL_MIB and seconds <= GOAL_S
    return row | {
        "kernels": review["variants"][0]["kernels"],
        "reason": "; ".join(failed) or None,
        "met": small if what == "eager" else None,  # of the compiler's memory and time nothing is claimed
    }


def main() -> None:
    """Predict every case, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=list(CASES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.only:
        rows.append(run(*CASES[name]))
        print(name, f"{rows[-1]['seconds']:.1f} s, {rows[-1]['peak_mib']:,.0f} MiB", file=sys.stderr, flush=True)
    claimed = [row for row in rows if row["variants"] == "eager"]
    known = calibrate.describe_machine("cpu", calibrate.calibrate_host("cpu"), None)
    result = {
        "claim": CLAIM,
        "goal": GOAL_MIB,
        "unit": "MiB",
        "value": max((row["peak_mib"] for row in claimed), default=None),
        "met": bool(claimed) and all(row["met"] for row in claimed),
        "machine": msgspec.to_builtins(known),
        "rows": rows,
    }
    (options.out / "predict_cost.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    print(tabulate([list(row.values()) for row in rows], headers=list(rows[0]) if rows else (), floatfmt=".1f"))
    print(f"{CLAIM}: {result['value'] or float('nan'):,.0f} MiB, goal {GOAL_MIB:,.0f}; met: {result['met']}")


if __name__ == "__main__":
    main()
