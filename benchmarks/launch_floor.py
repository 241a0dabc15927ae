"""Claim: which launch floor is taken, traced or untraced, moves HDBI by at most 0.02 on decode steps in eager mode.

    python benchmarks/launch_floor.py [--out benchmarks/results] [--budget 1]

Measures T_sys by three ways beside the published one and says what tracing, Triton's launcher and the machine add;
what a launch call costs the host; replay of CUDA graphs against their node count; and launch latency above T_sys per
family beside the published residuals.  Writes OUT/launch_floor.json = {claim, goal, unit, value, met, machine, rows}.
All that is not traced runs before the first trace.  CUDA only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tabulate import tabulate

from taxbreak_fx import trace
from taxbreak_fx.errors import MeasurementError, TaxbreakError
from taxbreak_fx.launch_path import LaunchLoop
from taxbreak_fx.machine import Calibration
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recorders.tracing import REPLAY, named_range, profiled
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Outcome, Stage, assemble

CLAIM = "the launch floor that is taken, traced or untraced, moves the HDBI of eager decode by at most 0.02"
GOAL = 0.02
CASES = {
    "gpt2-decode": ReviewRequest(model="gpt2", phase="decode", device="cuda", variants=("eager",)),
    "llama-3.2-1b-decode": ReviewRequest(model="Llama-3.2-1B", phase="decode", device="cuda", variants=("eager",)),
}
# Cited, not measured here: arXiv 2603.12465, p5 / p50 / p95 in µs, bare metal under nsys.
PUBLISHED_FLOOR = {"H100": (4.260, 4.578, 5.396), "H200": (4.177, 4.452, 4.909)}
# The same source, H100, launch latency above the floor in µs; ranges as printed.
PUBLISHED_RESIDUAL = {
    "sort/scan": "scan 0.32",
    "elementwise": "0.36–0.56",
    "reduction": "reduce 0.55",
    "gemm": "nvjet 1.18, cuBLAS 1.88",
}
CITED = "published (H100), cited"
NULL_NODES = (1, 10, 100, 1000)
CHAIN_NODES = (10, 50, 100, 200, 400, 800)
REPLAYS, TRACED_REPLAYS = 60, 10
WARM = 5


class Graph:
    """A captured CUDA graph whose first node writes 1 into ``flag``, a word in the host's memory."""

    def __init__(self, kind: str, flag: torch.Tensor, body: Callable[[], Any]) -> None:
        from taxbreak_fx.null_kernel import flag_kernel

        self.kind = kind
        self.row: dict[str, Any] = {"table": "graph", "graph": kind}
        self.body = body  # keeps the tensors that the nodes read
        flag_kernel[(1,)](flag, 1, num_warps=1)  # loaded before the capture, which forbids loading
        body()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # Relaxed: Triton asks the driver about the flag's address at every launch, which a strict capture may refuse.
        with torch.cuda.graph(self.graph, capture_error_mode="relaxed"):
            flag_kernel[(1,)](flag, 1, num_warps=1)
            self.kept = body()
        for _ in range(WARM):
            self.graph.replay()
        torch.cuda.synchronize()

    def time(self, seen: Callable[[Callable[[], None]], float], way_us: float) -> None:
        """Un-instrumented: host time of a replay, replay to idle, and replay to the first node less the flag's way."""
        rows = []
        for _ in range(REPLAYS):
            torch.cuda.synchronize()
            at: list[int] = []

            def run(at: list[int] = at) -> None:
                at.append(time.perf_counter_ns())
                self.graph.replay()
                at.append(time.perf_counter_ns())

            first = seen(run)
            torch.cuda.synchronize()
            idle = time.perf_counter_ns()
            rows.append(((at[1] - at[0]) / 1e3, (idle - at[0]) / 1e3, (first - at[0]) / 1e3))
        host, total, flag = (statistics.median(column) for column in zip(*rows, strict=True))
        self.row |= {"host_us": host, "total_us": total, "first_node_untraced_us": flag - way_us}


def null_body(nodes: int) -> Callable[[], Any]:
    """``nodes`` null kernels."""
    from taxbreak_fx.null_kernel import launch_null_kernel

    def body() -> None:
        for _ in range(nodes):
            launch_null_kernel()

    return body


def chain_body(nodes: int) -> Callable[[], Any]:
    """``nodes`` operations as a decoder has them on one token: product, addition, normalisation, over and over."""
    weight = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16) / 45
    start, bias = (torch.randn(1, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    operations: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda x: torch.mm(x, weight),
        lambda x: torch.add(x, bias),
        lambda x: torch.nn.functional.layer_norm(x, (2048,)),
    )

    def body() -> torch.Tensor:
        x = start
        for number in range(nodes):
            x = operations[number % 3](x)
        return x

    return body


def fit(nodes: Sequence[float], us: Sequence[float]) -> dict[str, float]:
    """Least squares ``us`` = base_us + per_node_us · nodes; the largest residual in µs and relative to its value."""
    slope, base = np.polyfit(np.asarray(nodes, dtype=float), np.asarray(us, dtype=float), 1)
    off = np.abs(np.asarray(us) - (base + slope * np.asarray(nodes)))
    return {
        "base_us": float(base),
        "per_node_us": float(slope),
        "worst_residual_us": float(off.max()),
        "worst_residual_relative": float((off / np.asarray(us)).max()),
    }


def trace_graphs(graphs: Sequence[Graph]) -> None:
    """Traced: how many nodes ran, and replay API entry to the start of the first, on an idle stream."""

    def run() -> None:
        for index, graph in enumerate(graphs):
            for _ in range(TRACED_REPLAYS):
                torch.cuda.synchronize()
                with named_range(f"{REPLAY}{index}"):
                    graph.graph.replay()
        torch.cuda.synchronize()

    for index, launches in traced_launches(run, len(graphs)):
        if len(launches) != TRACED_REPLAYS or any(launch.kind != "graph" for launch in launches):
            raise MeasurementError(f"the trace holds {len(launches)} of {TRACED_REPLAYS} replays of a graph")
        graphs[index].row |= {
            "nodes": launches[-1].activities,
            "first_node_traced_us": statistics.median(launch.latency_us for launch in launches),
        }


def traced_launches(run: Callable[[], None], count: int) -> Iterator[tuple[int, list[Any]]]:
    """Per range number: the first launch of every range of that number in the trace of ``run``."""
    events = profiled(run)
    ranges = trace.spans(events, REPLAY)
    steps = trace.traced_steps(events, ranges, [])
    found: dict[int, list[Any]] = {index: [] for index in range(count)}
    for (_, _, number), step in zip(ranges, steps, strict=True):
        if step.launches:
            found[int(number)].append(step.launches[0])
    yield from found.items()


def direct_residuals(t_sys_us: float) -> list[dict[str, Any]]:
    """Launch latency above T_sys of a few ops alone, as replays of a step would show it."""
    x = torch.randn(512, 768, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(768, 768, device="cuda", dtype=torch.bfloat16)
    ops: dict[tuple[str, str], Callable[[], Any]] = {
        ("sort/scan", "cumsum"): lambda: torch.cumsum(x, 0),
        ("elementwise", "add"): lambda: torch.add(x, x),
        ("elementwise", "gelu"): lambda: torch.nn.functional.gelu(x),
        ("reduction", "sum"): lambda: torch.sum(x, 1),
        ("normalization", "layer_norm"): lambda: torch.nn.functional.layer_norm(x, (768,)),
        ("gemm", "mm bf16"): lambda: torch.mm(x, w),
        ("gemm", "mm fp32"): lambda: torch.mm(x32, w32),
    }
    x32, w32 = x.float(), w.float()
    for op in ops.values():
        op()

    def run() -> None:
        for index, op in enumerate(ops.values()):
            for _ in range(REPLAYS):
                torch.cuda.synchronize()
                with named_range(f"{REPLAY}{index}"):
                    op()
        torch.cuda.synchronize()

    found = dict(traced_launches(run, len(ops)))
    return [
        residual(f"{name} alone", family, statistics.median(launch.latency_us for launch in found[index]) - t_sys_us)
        for index, (family, name) in enumerate(ops)
        if found[index]
    ]


def residual(where: str, family: str, us: float | None, reason: str | None = None) -> dict[str, Any]:
    """One line of the table of families."""
    cited = PUBLISHED_RESIDUAL.get(family)
    return {"table": "residual", "where": where, "family": family, "kt_fw_us": us, "reason": reason, CITED: cited}


def floor_rows(calibration: Calibration, device: str) -> list[dict[str, Any]]:
    """T_sys by every way beside the published one, then what each step from the published floor to ours adds."""
    path = calibration.launch_path
    ways = {
        "Triton null kernel, traced": calibration.t_sys_us,
        "bare loop in C, traced": path.t_sys_bare_us,
        "untraced estimate (flag − round trip / 2)": path.t_sys_untraced_us,
        "flag (upper bound of T_sys)": path.flag_us,
        "round trip host → kernel → host": path.round_trip_us,
        "launch call, null kernel, behind others": path.queued_us,
        "launch call, null kernel, idle stream": path.idle_us,
        "launch call, 12 arguments, behind others": path.queued_arguments_us,
        "launch call, null kernel, CUDA runtime": path.queued_runtime_us,
    }
    reasons = {**path.unmeasured, **calibration.unmeasured}
    rows = [_floor_row(name, value) for name, value in ways.items()]
    published = next((floor for card, floor in PUBLISHED_FLOOR.items() if card in device), None)
    if published is not None:
        rows.append(
            _floor_row("published, cited", Percentiles(p5=published[0], p50=published[1], p95=published[2], samples=0))
        )
    triton, bare, untraced = calibration.t_sys_us, path.t_sys_bare_us, path.t_sys_untraced_us
    moves = {
        "Python and Triton's launcher: traced Triton − traced bare loop": (triton, bare),
        "tracing: traced bare loop − untraced estimate": (bare, untraced),
    }
    for name, (after, before) in moves.items():
        if after is not None and before is not None:
            rows.append({"table": "move", "what": name, "us": after.p50 - before.p50})
    if untraced is not None and published is not None:
        what = "machine (VM, host, driver) and the estimate's error: untraced estimate − published"
        rows.append({"table": "move", "what": what, "us": untraced.p50 - published[1]})
    rows += [{"table": "unmeasured", "what": name, "reason": why} for name, why in reasons.items()]
    return rows


def _floor_row(name: str, value: Percentiles | None) -> dict[str, Any]:
    numbers = {"p5": None, "p50": None, "p95": None} if value is None else msgspec.to_builtins(value)
    return {"table": "floor", "what": name, **numbers}


def index_row(case: str, variant: Variant) -> dict[str, Any]:
    """HDBI of a case under both floors."""
    terms = variant.breakdown
    traced, untraced = (terms.hdbi, terms.hdbi_untraced) if terms else (None, None)
    return {
        "table": "hdbi",
        "case": case,
        "launches": variant.launches,
        "hdbi": traced,
        "hdbi_untraced": untraced,
        "moved": None if traced is None or untraced is None else abs(untraced - traced),
        "reason": variant.reason or (terms.unmeasured.get("hdbi_untraced") if terms else None),
    }


def measure(budget_s: float) -> tuple[Review, list[dict[str, Any]]]:
    """One machine's rows: first what is timed, then what is traced."""
    from taxbreak_fx.models import load
    from taxbreak_fx.pipeline import Runner

    runners = {name: Runner(load(request, "cuda"), "cuda", budget_s) for name, request in CASES.items()}
    outcomes: dict[str, list[Outcome]] = {}
    for name, runner in runners.items():
        outcomes[name] = [runner.run(Stage(kind="host")), runner.run(Stage(kind="timing", variant="eager"))]
    first = next(iter(outcomes.values()))[0].value()
    path = first.machine.calibration.launch_path  # type: ignore[union-attr]
    if path.round_trip_us is None:
        sys.exit(f"launch_floor: no round trip, so no untraced floor: {path.unmeasured['round_trip_us']}")
    flag = torch.zeros(64, dtype=torch.int32, pin_memory=True)
    with torch.no_grad():
        graphs = [Graph("null kernels", flag, null_body(nodes - 1)) for nodes in NULL_NODES]
        graphs += [Graph("mm, add, layer_norm", flag, chain_body(nodes - 1)) for nodes in CHAIN_NODES]
    with LaunchLoop().watch(flag.data_ptr()) as seen:
        for graph in graphs:
            graph.time(seen, path.round_trip_us.p50 / 2)
    floor = next(iter(runners.values())).run(Stage(kind="floor"))
    rows: list[dict[str, Any]] = []
    reviews = {}
    for name, runner in runners.items():
        outcomes[name] += [runner.run(Stage(kind="trace", variant="eager")), floor]
        reviews[name] = assemble(outcomes[name], ("eager",), "cuda")
    trace_graphs(graphs)
    review = next(iter(reviews.values()))
    calibration = review.machine.calibration
    rows += floor_rows(calibration, review.machine.device)
    rows += [graph.row for graph in graphs]
    for kind in dict.fromkeys(graph.kind for graph in graphs):
        own = [graph.row for graph in graphs if graph.kind == kind]
        for what in ("host_us", "total_us"):
            line = fit([row["nodes"] for row in own], [row[what] for row in own])
            rows.append({"table": "fit", "graph": kind, "fitted": what, **line})
    for name, done in reviews.items():
        eager = done.variant("eager")
        rows += [residual(name, r.family, r.kt_fw_us, r.unmeasured.get("kt_fw_us")) for r in eager.replay]
        rows.append(index_row(name, eager))
    if calibration.t_sys_us is not None:
        with torch.no_grad():
            rows += direct_residuals(calibration.t_sys_us.p50)
    return review, rows


def main() -> None:
    """Measure, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timed pairs per case")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("launch_floor: needs a CUDA device; there is none here")
    try:
        review, rows = measure(options.budget)
    except TaxbreakError as error:
        sys.exit(f"launch_floor: {error}")
    moved = [row["moved"] for row in rows if row["table"] == "hdbi"]
    value = None if None in moved else max(moved)
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "largest |HDBI(untraced floor) − HDBI(traced floor)|",
        "value": value,
        "met": value is not None and value <= GOAL,
        "machine": msgspec.to_builtins(review.machine),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "launch_floor.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    for table in dict.fromkeys(row["table"] for row in rows):
        lines = [{key: cell for key, cell in row.items() if key != "table"} for row in rows if row["table"] == table]
        print(tabulate(lines, headers="keys", floatfmt=".3g"), end="\n\n")
    print(f"{CLAIM}: {value} (goal {GOAL}), {'met' if result['met'] else 'NOT met'}")


if __name__ == "__main__":
    main()
