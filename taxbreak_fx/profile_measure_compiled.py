"""What torch.compile and CUDA graphs cost around and between kernels, from steps that run so; microseconds."""

from __future__ import annotations

import ast
import inspect
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from taxbreak_fx.decompose import flag_way
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.hardware import GraphPoint
from taxbreak_fx.model import StepInfo
from taxbreak_fx.profile_measure_fit import line
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.recorders.frame import measure_frame
from taxbreak_fx.recorders.graph_launch import FlagKernel, flagged_captures, timed_replays
from taxbreak_fx.recorders.in_situ import in_situ
from taxbreak_fx.recorders.library import time_libraries
from taxbreak_fx.recorders.timing import capture_sites, reach_sites
from taxbreak_fx.variants import Built
from taxbreak_fx.workload import Workload

Device = Literal["cuda", "cpu"]
TERMS = (1, 2, 4, 8, 12)  # tensors that the fused kernels of the program add up: so many arguments more
COPIED_INPUTS, COPIED_ROUNDS = (2, 12), 5
GRAPH_NODES = (1, 10, 100, 300, 1_000)
_REPLAYS, _WARM = 30, 3


@dataclass
class CompiledStep:
    """One step under Inductor.  ``triton``: (arguments, microseconds without the launch call) of each kernel launch."""

    around_us: float | None
    runtime_us: float | None
    glue_us: float
    lines: int
    triton: list[tuple[int, float]] = field(default_factory=list)
    extern: list[float] = field(default_factory=list)
    allocations: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class GuardedStep:
    """One step under a backend that computes nothing; ``guards``: how many Dynamo made, over all frames."""

    guards: int
    guards_us: float
    aot_us: float | None


def measure_guards(workload: Workload, device: Device, budget_s: float) -> GuardedStep:
    """Guards and AOT wrapper of a step.  Raises ``MeasurementError`` where guards cannot be skipped or counted."""
    from torch._dynamo import utils

    bench = Bench(workload, device, budget_s)
    utils.clear_compilation_metrics()
    frame = measure_frame(bench)
    guards = sum(metrics.guard_count or 0 for metrics in utils.get_compilation_metrics())
    if frame.guards_us is None or not guards:
        raise MeasurementError(frame.guards_failure or "Dynamo does not say how many guards it made")
    return GuardedStep(guards, frame.guards_us, frame.aot_us)


def guard_costs(steps: Sequence[GuardedStep]) -> dict[str, float]:
    """``guards_us`` and ``guard_us`` of ``hardware.CompiledCosts``.  Raises ``ValueError`` as ``line`` does."""
    fixed, slope = line([(step.guards, step.guards_us) for step in steps])
    return {"guards_us": fixed, "guard_us": slope}


def program_workload(device: Device, terms: Sequence[int] = TERMS) -> Workload:
    """Products with sums of 1 … 12 more tensors between them: under Inductor, one extern call and one fused kernel
    each."""
    lines = [f"    x = torch.mm(x, w) + {' + '.join(f't{i}' for i in range(count))}\n" for count in terms]
    names = [f"t{i}" for i in range(max(terms))]
    source = f"def program(x, w, {', '.join(names)}):\n{''.join(lines * 2)}    return x\n"
    space: dict[str, Any] = {"torch": torch}
    exec(compile(source, "<program of a profile>", "exec"), space)
    return _workload(space["program"], device, 2 + len(names))


def copied_workload(device: Device, inputs: int) -> Workload:
    """The sum of so many inputs, none of which keeps its address under CUDA graph trees: each is copied in."""
    names = [f"t{i}" for i in range(inputs)]
    source = f"def copied({', '.join(names)}):\n    return {' + '.join(names)}\n"
    space: dict[str, Any] = {}
    exec(compile(source, "<inputs of a profile>", "exec"), space)
    return _workload(space["copied"], device, inputs)


def _workload(call: Any, device: Device, inputs: int) -> Workload:
    step = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device=device)
    tensors = tuple(torch.full((64, 64), 1 / 64, device=device) for _ in range(inputs))
    return Workload(call=call, model=call.__name__, step=step, args=tensors)


def measure_inductor(workload: Workload, device: Device, budget_s: float, launch_us: float | None) -> CompiledStep:
    """A step under Inductor, by its wrapper's lines.  ``launch_us``: of one launch call, taken off each Triton line.

    Torch's own errors of compiling pass through.
    """
    bench = Bench(workload, device, budget_s)
    built, _ = bench.build("inductor")
    try:
        reach_sites(bench, built)
        sites = capture_sites(bench, built).sites
        spans, clock, _ = in_situ(bench, built, len(sites))
        library = time_libraries(bench, built, len(sites)) if device == "cuda" else None
        arguments: dict[str, int] = {}
        for module in getattr(built, "_modules", []):  # the wrapper's source alone tells a launch's arguments
            arguments |= launcher_arguments(inspect.getsource(module))
    finally:
        built.release()
    step = CompiledStep(spans.around_us, spans.runtime_us, spans.glue_us, len(sites))
    speed = clock.host_us / library.host_us if library is not None else 1.0
    beside = {} if library is None else {e.site: (e.own_us + e.launch_us + e.blocked_us) * speed for e in library.sites}
    for index, (site, us) in enumerate(zip(sites, clock.site_us, strict=True)):
        name = site.target.partition(":")[2]
        if site.target.startswith("triton:"):
            if name in arguments and launch_us is not None:
                step.triton.append((arguments[name], us - launch_us))
        elif "empty_strided" in site.target:
            step.allocations.append(us)
        elif site.target.startswith("extern:"):
            step.extern.append(us - beside.get(index, 0.0))
    return step


def launcher_arguments(source: str) -> dict[str, int]:
    """Positional arguments with which a wrapper module's code launches each of its Triton kernels."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        launches = isinstance(node, ast.Call) and any(word.arg == "stream" for word in node.keywords)
        if launches and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "run":
            found[ast.unparse(node.func.value)] = len(node.args)
    return found


def inductor_costs(measured: Sequence[tuple[CompiledStep, GuardedStep | None]]) -> dict[str, float]:
    """What of ``hardware.CompiledCosts`` the steps tell; a missing name was not met in any of them.

    ``frame_us`` is what a step has around its graph beyond its guards, where those were measured too.
    ``triton_argument_us`` is 0 where no growth with the arguments was seen above the noise.
    """
    steps = [step for step, _ in measured]
    found: dict[str, float] = {}
    triton = [pair for step in steps for pair in step.triton]
    if triton:
        try:
            found["triton_us"], found["triton_argument_us"] = line(triton)
        except ValueError:
            found["triton_us"], found["triton_argument_us"] = statistics.median(us for _, us in triton), 0.0
    for name, values in (
        ("extern_us", [us for step in steps for us in step.extern]),
        ("allocation_us", [us for step in steps for us in step.allocations]),
        ("wrapper_us", [step.glue_us / step.lines for step in steps if step.lines]),
        ("aot_us", [step.runtime_us for step in steps if step.runtime_us is not None]),
        (
            "frame_us",
            [s.around_us - g.guards_us for s, g in measured if s.around_us is not None and g is not None],
        ),
    ):
        if values:
            found[name] = statistics.median(values)
    return found


def measure_copied_inputs(device: Device, budget_s: float) -> list[tuple[int, float]]:
    """(Copied inputs, host time inside the graph callable around the replay): CUDA graph trees and the AOT wrapper.

    Steps with ``COPIED_INPUTS`` inputs, in turns: a host that changes its speed between two steps measured one after
    the other hides what a copy takes (H200, 2026-11-23).  Raises ``MeasurementError`` when a step was not graphed.
    """
    benches = [Bench(copied_workload(device, inputs), device, budget_s / COPIED_ROUNDS) for inputs in COPIED_INPUTS]
    built: list[Built] = []
    points = []
    try:
        for bench in benches:
            built.append(bench.build("reduce-overhead")[0])
            launched = len(capture_sites(bench, built[-1]).sites)
            if launched != 1:
                notes = "; ".join(built[-1].notes)
                raise MeasurementError(f"reduce-overhead launched {launched} CUDA graphs: {notes}")
        for _ in range(COPIED_ROUNDS):
            for inputs, bench, step in zip(COPIED_INPUTS, benches, built, strict=True):
                spans, _, _ = in_situ(bench, step, 1)
                points.append((inputs, spans.glue_us + (spans.runtime_us or 0.0)))
    finally:
        for step in built:
            step.release()
    return points


def cudagraph_costs(points: Sequence[tuple[int, float]], aot_us: float) -> dict[str, float]:
    """``cudagraph_us`` and ``cudagraph_input_us`` from (copied inputs, microseconds), the AOT wrapper taken off."""
    fixed, slope = line([(inputs, us - aot_us) for inputs, us in points])
    return {"cudagraph_us": fixed, "cudagraph_input_us": slope}


def measure_graph(nodes: int, round_trip_us: Percentiles | None) -> GraphPoint:
    """A CUDA graph of so many kernels, products and sums in turns as in a model, replayed on a drained stream (CUDA).

    ``first_node_us`` is None where the flag cannot be watched.
    """
    graph, _held = _captured(nodes)
    host = []
    with quiet_gc():
        for number in range(_WARM + _REPLAYS):
            torch.cuda.synchronize()
            started = time.perf_counter_ns()
            graph.replay()
            if number >= _WARM:
                host.append((time.perf_counter_ns() - started) / 1e3)
    torch.cuda.synchronize()
    graph.reset()
    first = None if round_trip_us is None else _first_node_us(nodes) - flag_way(round_trip_us)
    usable = first if first is not None and first >= 0 else None
    return GraphPoint(nodes=nodes, host_us=statistics.median(host), first_node_us=usable)


def _captured(nodes: int) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]:
    """The graph, and the tensors that it reads: they must live as long as it is replayed."""
    x, w = torch.zeros(64, 64, device="cuda"), torch.zeros(64, 64, device="cuda")
    torch.mm(x, w)  # loads the library before capture
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = x
        for number in range(nodes):
            y = torch.mm(y, w) if number % 3 == 2 else y + w
    return graph, (x, w, y)


def _first_node_us(nodes: int) -> float:
    flag = FlagKernel()
    with flagged_captures(flag.launch) as failures:
        graph, _held = _captured(nodes)
    if failures:
        raise failures[0]
    rows: list[float] = []
    with flag.watch() as seen, quiet_gc():
        for _ in range(_WARM + _REPLAYS):
            with timed_replays(seen, torch.cuda.synchronize) as row:
                graph.replay()
            rows += row
    torch.cuda.synchronize()
    graph.reset()
    return statistics.median(rows[_WARM:])
