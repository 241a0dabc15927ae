"""Claim: what a CUDA graph's replay takes per node beyond its kernels is the distance that its nodes keep when traced,
less what tracing adds (``recorders.tracing.added_by_tracing``).

    python benchmarks/graph_nodes.py [--out benchmarks/results] [--captures 4] [--replays 30] [--only CASE ...]

The step is captured several times; the captures are replayed in turns: alone, between eager steps, while half of the
cores are busy, and while another process holds an idle context on the GPU.  T_wall each, un-instrumented, with the SM
clock just after it; at the end each capture is traced.  Graphed steps have taken 0.3 µs per node more in some captures
than in others (docs/method.md, "Timeline"); this tells whether the capture decides it, and nothing else does.
Writes OUT/graph_nodes.json = {claim, goal, unit, value, met, machine, rows}, again after every case.  CUDA only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from tabulate import tabulate

from taxbreak_fx import trace
from taxbreak_fx.calibrate import calibrate_host, describe_machine
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.models import load
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recorders.tracing import added_by_tracing, profiled
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.variants import Built

CLAIM = "what a replay takes per node beyond its kernels is the traced distance of its nodes less what tracing adds"
GOAL = 0.15
SPIN = "print('ready', flush=True)\nwhile True: pass"
CONTEXT = "import torch; torch.zeros(1, device='cuda'); print('ready', flush=True); input()"
CASES = {
    "gpt2-decode": ReviewRequest(model="gpt2", phase="decode", device="cuda"),
    "llama-prefill": ReviewRequest(model="Llama-3.2-1B", phase="prefill", device="cuda"),
    "vit": ReviewRequest(model="ViT-base", phase="prefill", device="cuda"),
}
ALONE, BETWEEN, BUSY, SHARED = "alone", "between eager steps", "half of the cores busy", "another idle context"


@contextlib.contextmanager
def beside(condition: str) -> Iterator[None]:
    """The other processes of a condition."""
    count = {BUSY: max(1, (os.cpu_count() or 2) // 2), SHARED: 1}.get(condition, 0)
    command = [sys.executable, "-c", SPIN if condition == BUSY else CONTEXT]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"{condition}: a process ended before it began (its error is above)")
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def walls(bench: Bench, built: Sequence[Built], condition: str, replays: int) -> list[list[float]]:
    """T_wall of so many replays of each capture, in turns, in microseconds."""
    found: list[list[float]] = [[] for _ in built]
    for _ in range(replays):
        for own, graph in zip(found, built, strict=True):
            if condition != ALONE:
                bench.timed(bench.eager)
            own.append(bench.timed(graph)[0])
    return found


def measure(name: str, bench: Bench, captures: int, replays: int) -> list[dict[str, Any]]:
    """One row per capture and condition; ``node_us`` is T_wall beyond the traced kernels, per kernel, ``gap_us`` the
    median from one kernel of that capture to the next, traced, and ``added_us`` what tracing adds to that."""
    calibration = calibrate_host("cuda")
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), quiet_gc():
        built = [bench.build("eager-graph")[0] for _ in range(captures)]
        for condition in (ALONE, BETWEEN, BUSY, SHARED, ALONE):
            with beside(condition):
                timed = walls(bench, built, condition, replays)
                clocks = describe_machine("cuda", calibration, None).conditions.gpu_clocks_mhz or {}
            for capture, found in enumerate(timed):
                row = {"case": name, "capture": capture, "condition": condition, "wall_us": statistics.median(found)}
                rows.append(row | {"low_us": min(found), "high_us": max(found), "sm_mhz": clocks.get("sm")})
        events = [traced(bench, graph) for graph in built]  # last: the profiler leaves its process slower
        for graph in built:
            graph.release()
        added = {"added_us": added_by_tracing()}
    return [row | per_node(row["wall_us"], events[row["capture"]]) | added for row in rows]


def traced(bench: Bench, built: Built) -> list[dict[str, Any]]:
    """The events of a replay under the profiler."""

    def run() -> None:
        bench.step(built)

    return profiled(run)


def per_node(wall_us: float, events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a replay takes beyond its kernels as traced, per kernel; the launch and the synchronisation included."""
    kernels = trace.kernel_durations(events)
    spans = [(float(event["ts"]), float(event["dur"])) for event in events if event.get("cat") == "kernel"]
    gaps = trace.gaps_between((start, start + duration) for start, duration in spans)
    return {
        "kernels": len(kernels),
        "device_us": sum(kernels),
        "node_us": (wall_us - sum(kernels)) / len(kernels) if kernels else None,
        "gap_us": statistics.median(gaps) if gaps else None,
    }


def widest(rows: list[dict[str, Any]]) -> float | None:
    """The largest difference of ``node_us`` and ``gap_us`` − ``added_us``; None without rows."""
    known = [row for row in rows if row["gap_us"] is not None]
    return max((abs(row["node_us"] - row["gap_us"] + row["added_us"]) for row in known), default=None)


def write(out: Path, rows: list[dict[str, Any]], machine: Any) -> dict[str, Any]:
    """Replace the result file; returns what it holds."""
    value = widest(rows)
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "µs per node: largest difference of the two, the launch and the synchronisation included",
        "value": value,
        "met": value is not None and value <= GOAL and {row["case"] for row in rows} == set(CASES),
        "machine": msgspec.to_builtins(machine),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "graph_nodes.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return result


def main() -> None:
    """Measure the cases, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--captures", type=int, default=4)
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=list(CASES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("graph_nodes needs a CUDA device: only there are CUDA graphs")
    machine = describe_machine("cuda", calibrate_host("cuda"), None)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        bench = Bench(load(CASES[name], "cuda"), "cuda", 0.0)
        rows += with_room(partial(measure, name, bench, options.captures, options.replays))
        result = write(options.out, rows, machine)
    print(tabulate(rows, headers="keys", floatfmt=".4g"))
    print(f"{CLAIM}: {result['value']} {result['unit']} (goal ≤ {GOAL}), {'met' if result['met'] else 'NOT met'}")


if __name__ == "__main__":
    main()
