"""Claim: the analysis costs little beside what it analyses.

    python benchmarks/analysis_cost.py [--out benchmarks/results] [--device auto] [--budget 1.5] [--only ROW ...]

Rows, each with its goal: the full analysis of GPT-2's decode step with five variants beyond process start and
compiling (CUDA); replay of all unique ops of a 60-kernel model; capture and classification beside Dynamo's own
capture; how classification grows with the graph; the callable that the backend hands back beside the variant it chose;
and, as a fact without a goal, what one interpreter start per kernel, the reference's structure, would take here.
Writes OUT/analysis_cost.json = {claim, goal, unit, value, met, machine, rows}; parts run earlier keep their rows.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import msgspec
import torch
from tabulate import tabulate

from taxbreak_fx import calibrate
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.families import classify_op
from taxbreak_fx.kinds import site_kind
from taxbreak_fx.models import load, resolve_device
from taxbreak_fx.observe import GraphSwitch, node_target
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.record import Interval
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recorders.timing import Captured, capture_sites, hot_replays, reach_sites
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import assemble, plan
from taxbreak_fx.stats import ratio
from taxbreak_fx.variants import graph_info
from taxbreak_fx.workload import Workload

CLAIM = "the analysis costs little beside what it analyses"
FIVE = ("eager", "dynamo", "inductor", "reduce-overhead", "eager-graph")
STARTS = 3
CAPTURES = 8
CALL_PAIRS_S, LEAST_CALLS_S = 60.0, 0.002  # a single call may be as short as the clock is coarse
NODES = (10_000, 20_000, 50_000, 100_000)
OPS = ("mm", "add", "view", "gelu", "native_layer_norm", "softmax", "transpose", "copy_", "index", "mul", "cat", "sum")
Device = Literal["cuda", "cpu"]
Row = dict[str, Any]


def line(what: str, value: float | None, unit: str, goal: str, met: bool | None, **more: Any) -> Row:
    """One row of the result; ``met`` is None for a fact without a goal."""
    return {"what": what, "value": value, "unit": unit, "goal": goal, "met": met, **more}


def workload(device: Device, model: str | None = None) -> Workload:
    """The decode step of GPT-2, or of the tiny one on the CPU."""
    name, length = (model or "gpt2", 512) if device == "cuda" else ("gpt2-tiny", 32)
    return load(ReviewRequest(model=name, phase="decode", device=device, seq_len=length), device)


def full_analysis(device: Device, budget_s: float) -> list[Row]:
    """Wall time of all stages in a process that is up, less the builds of compiled variants; seconds."""
    variants = FIVE if device == "cuda" else ("eager", "dynamo", "inductor")
    runner = Runner(workload(device), device, budget_s)
    built: list[tuple[str, float]] = []
    build = Bench.build

    def timed(bench: Bench, name: str) -> Any:
        started = time.perf_counter()
        made = build(bench, name)
        built.append((name, time.perf_counter() - started))
        return made

    started = time.perf_counter()
    with mock.patch.object(Bench, "build", timed):
        outcomes = [runner.run(stage) for stage in plan(variants, device)]
    review = assemble(outcomes, variants, device)
    wall = time.perf_counter() - started
    compiling = sum(seconds for name, seconds in built if not name.startswith("eager"))
    own = wall - compiling
    stages = {outcome.stage.title: round(outcome.seconds, 2) for outcome in outcomes}
    failed = [outcome.failure for outcome in outcomes if outcome.failure]
    what = f"full analysis of {review.model} decode, {len(variants)} variants, beyond start and compiling"
    return [
        line(
            what, own, "s", "<= 60", own <= 60.0 and not failed, wall_s=wall, compiling_s=compiling, stages_s=stages,
            failed=failed, device=device,
        )
    ]  # fmt: skip


def replays(device: Device) -> list[Row]:
    """Hot replay of all unique calls and leaves; seconds."""
    rows = []
    for layers in (3, None):
        step = workload(device)
        if layers is not None and device == "cuda":
            del step.call.transformer.h[layers:]  # type: ignore[attr-defined]  # three of twelve: about 60 kernels
        elif layers is None and device == "cpu":
            continue
        bench = Bench(step, device, 0.1)
        built, _ = bench.build("eager")
        reach_sites(bench, built)
        captured: Captured = capture_sites(bench, built)
        started = time.perf_counter()
        with quiet_gc():
            found = hot_replays(bench, captured)
        seconds = time.perf_counter() - started
        works = sum(
            classify_op(key.split("(", 1)[0], device).family not in ("view", "host-sync")
            for site in captured.sites
            for key in site.leaf_keys
        )
        failed = sum(replay.failure is not None and replay.level != "smallest" for replay in found)
        what = f"replay of all unique ops of a step of {works} working ops"
        goal = layers is not None
        rows.append(
            line(
                what, seconds, "s", "<= 2" if goal else "none", seconds <= 2.0 if goal else None, replays=len(found),
                failed=failed, device=device,
            )
        )  # fmt: skip
    return rows


def capture(device: Device) -> list[Row]:
    """Capture and classification through a backend of ours beside a backend that does nothing, interleaved; ratio."""
    step = workload(device)

    def trivial(gm: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        return gm.forward

    def ours(gm: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        graph_info(gm)
        for node in gm.graph.nodes:
            if node.op.startswith("call_"):
                classify_op(node_target(node), device)
        return GraphSwitch(gm.forward)

    bench = Bench(step, device, 0.1)

    def seconds(backend: Callable[..., Any]) -> float:
        torch._dynamo.reset()
        bench.snapshot.restore()
        bench.sync()
        started = time.perf_counter()
        torch.compile(step.call, backend=backend)(*step.args, **step.kwargs)
        bench.sync()
        return time.perf_counter() - started

    with torch.no_grad(), quiet_gc():
        seconds(trivial), seconds(ours)
        pairs = [
            (seconds(ours), seconds(trivial)) if number % 2 else tuple(reversed((seconds(trivial), seconds(ours))))
            for number in range(CAPTURES)
        ]
    torch._dynamo.reset()
    found = ratio([own for own, _ in pairs], [base for _, base in pairs])
    return [
        line(
            "capture and classification over Dynamo's own capture", found.median, "ratio", "<= 1.10",
            found.median <= 1.10, interval=bounds(found), dynamo_s=statistics.median(base for _, base in pairs),
            device=device,
        )
    ]  # fmt: skip


def classification(device: Device) -> list[Row]:
    """Time to classify a synthetic graph of up to 100,000 nodes; exponent of a power law fitted to four sizes."""
    times = {}
    for count in NODES:
        graph = synthetic(count)
        best = []
        for _ in range(3):
            started = time.perf_counter()
            for node in graph.nodes:
                if node.op == "call_function":
                    classify_op(node_target(node), device)
            best.append(time.perf_counter() - started)
        times[count] = min(best)
    exponent = fitted_exponent(times)
    return [
        line(
            f"growth of classification up to {NODES[-1]:,} nodes", exponent, "exponent", "<= 1.1", exponent <= 1.1,
            seconds=times, us_per_node=times[NODES[-1]] / NODES[-1] * 1e6, device=device,
        )
    ]  # fmt: skip


def synthetic(count: int) -> torch.fx.Graph:
    """A chain of ``count`` ATen calls of a dozen kinds."""
    graph = torch.fx.Graph()
    last = graph.placeholder("x")
    overloads = [getattr(torch.ops.aten, name) for name in OPS]
    targets = [getattr(packet, packet.overloads()[0]) for packet in overloads]
    for number in range(count):
        last = graph.call_function(targets[number % len(targets)], (last,))
    graph.output(last)
    return graph


def fitted_exponent(times: dict[int, float]) -> float:
    """Least-squares slope of log time over log size."""
    points = [(math.log(count), math.log(seconds)) for count, seconds in times.items()]
    x, y = (statistics.fmean(column) for column in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def backend(device: Device) -> list[Row]:
    """What torch.compile(backend="taxbreak") runs after its report beside the plain variant that it chose; ratio."""
    from taxbreak_fx import backend as taxbreak

    logging.getLogger("taxbreak_fx").setLevel(logging.ERROR)  # the program prints its own table
    step = workload(device)
    bench = Bench(step, device, 0.1)
    torch._dynamo.reset()
    chosen = "inductor"
    given = {"run": chosen, "variants": [chosen], "budget_s": 15.0, "quiet": True}
    measured = torch.compile(step.call, backend="taxbreak", options=given)
    plain = torch.compile(step.call, backend="inductor")

    def seconds(call: Callable[..., Any], calls: int = 1) -> float:
        total = 0.0
        for _ in range(calls):
            bench.snapshot.restore()
            bench.sync()
            started = time.perf_counter()
            call(*step.args, **step.kwargs)
            bench.sync()
            total += time.perf_counter() - started
        return total

    with torch.no_grad():
        for _ in range(2):  # measures at the first call, reports at the second
            seconds(measured), seconds(plain)
        calls = math.ceil(LEAST_CALLS_S / seconds(plain))
        pairs: list[tuple[float, float]] = []
        deadline = time.perf_counter() + CALL_PAIRS_S
        with quiet_gc():
            while time.perf_counter() < deadline:
                if len(pairs) % 2:
                    pairs.append((seconds(measured, calls), seconds(plain, calls)))
                else:
                    base = seconds(plain, calls)
                    pairs.append((seconds(measured, calls), base))
    taxbreak.reset()
    torch._dynamo.reset()
    found = ratio([own for own, _ in pairs], [base for _, base in pairs])
    inside = found.low >= 0.99 and found.high <= 1.01
    return [
        line(
            f"callable of the backend over plain torch.compile ({chosen})", found.median, "ratio",
            "interval in [0.99, 1.01]", inside, interval=bounds(found), pairs=len(pairs), calls_per_pair=calls,
            step_us=statistics.median(base for _, base in pairs) / calls * 1e6, device=device,
        )
    ]  # fmt: skip


def reference_structure(device: Device) -> list[Row]:
    """One interpreter start per unique kernel, by the measured cost of a start; seconds."""
    use = "; torch.zeros(1, device='cuda')" if device == "cuda" else ""
    starts = []
    for _ in range(STARTS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import torch, transformers{use}"], check=True)
        starts.append(time.perf_counter() - started)
    bench = Bench(workload(device), device, 0.1)
    built, _ = bench.build("eager")
    unique = len(
        {
            key
            for site in capture_sites(bench, built).sites
            for key in site.leaf_keys
            if site_kind(site, device).family not in ("view", "host-sync")
        }
    )
    start = statistics.median(starts)
    return [
        line(
            f"one interpreter start per unique working op ({unique}), start measured", start * unique, "s", "none",
            None, start_s=start, starts_s=starts, device=device,
        )
    ]  # fmt: skip


def bounds(found: Interval) -> list[float]:
    """Both ends of an interval."""
    return [found.low, found.high]


def machine(device: Device) -> dict[str, Any]:
    """The machine, as reviews describe it."""
    described: dict[str, Any] = msgspec.to_builtins(
        calibrate.describe_machine(device, calibrate.calibrate_host(device), None)
    )
    return described


def main() -> None:
    """Run the chosen rows and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--budget", type=float, default=1.5, help="seconds of timed pairs per variant, full analysis")
    names = ("backend", "capture", "classification", "replays", "reference", "full")
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    options = parser.parse_args()
    device = resolve_device(options.device)
    described = machine(device)
    # The full analysis comes last: the profiler leaves its process slower.
    parts: dict[str, Callable[[], list[Row]]] = {
        "backend": lambda: backend(device),
        "capture": lambda: capture(device),
        "classification": lambda: classification(device),
        "replays": lambda: replays(device),
        "reference": lambda: reference_structure(device),
        "full": lambda: full_analysis(device, options.budget),
    }
    target = options.out / "analysis_cost.json"
    old = msgspec.json.decode(target.read_bytes()) if target.exists() else {"rows": [], "machine": {}}
    rows, machines = list(old["rows"]), dict(old["machine"])
    for name in names:
        if name in options.only:
            started = time.perf_counter()
            made = with_room(parts[name])
            rows = [row for row in rows if row["part"] != name] + [{"part": name, **row} for row in made]
            machines[name] = described
            print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    missed = [row["what"] for row in rows if row["met"] is False]
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": "rows that miss their goal",
        "value": len(missed),
        "met": not missed and set(machines) == set(names),
        "machine": machines,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = [[row["what"], row["value"], row["unit"], row["goal"], row["met"]] for row in rows]
    print(tabulate(shown, headers=("what", "value", "unit", "goal", "met"), floatfmt=".4g"))
    print(f"{CLAIM}: {len(missed)} of {len(rows)} rows miss their goal")


if __name__ == "__main__":
    main()
