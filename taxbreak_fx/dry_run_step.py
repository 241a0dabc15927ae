"""Compiles a step for a GPU that is absent, in this process: Dynamo captures it, Inductor plans each graph.

It changes torch for its length and leaves a device guard behind: ``dry_run`` runs it in a process of its own.
"""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from taxbreak_fx.absent_gpu import gpu
from taxbreak_fx.absent_step import absent_step, versions
from taxbreak_fx.dry_run_compile import Plan, planning
from taxbreak_fx.dry_run_patches import check_version, pretended_to_inductor
from taxbreak_fx.errors import CaptureError, TaxbreakError
from taxbreak_fx.factory import first_line
from taxbreak_fx.fake_step import needs_data
from taxbreak_fx.graph_facts import graph_info
from taxbreak_fx.predicted import DryRun, PlannedGraph
from taxbreak_fx.record import SourceLine
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.sdpa_policy import SDPA, attend
from taxbreak_fx.sources import foreign

NOTES = (
    "attention takes the backend that torch chooses on the target; products whose rows are not aligned are padded "
    "where arithmetic bounds them, which the target decides by timing; one extern call may launch several kernels",
)


def plan_step(request: ReviewRequest, target: str) -> DryRun:
    """What Inductor's default mode would launch for the step of ``request`` on ``target``.

    Raises as ``absent_step`` does, and ``CaptureError`` where Dynamo or Inductor fail or torch is not covered.
    """
    started = time.perf_counter()
    check_version()
    with absent_step(request, target) as made:
        workload = made.workload
        try:
            graphs = _planned(workload.call, workload.args, dict(workload.kwargs), target)
        except TaxbreakError:
            raise
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, DataDependentOutputException | DynamicOutputShapeException):
                raise needs_data(cause.func, _line(cause)) from error
            raise CaptureError(f"{workload.model} could not be compiled for {target}: {first_line(cause)}") from error
    if not graphs:
        raise CaptureError(f"{workload.model}: Dynamo captured no graph, so there is nothing to compile")
    return DryRun(
        model=workload.model,
        target=gpu(target).name,
        step=workload.step,
        graphs=graphs,
        assumptions=[*NOTES, *made.known.assumptions],
        versions=versions() | {"triton": _triton()},
        seconds=time.perf_counter() - started,
        peak_memory_bytes=_peak_memory_bytes(),
    )


def _planned(call: Callable[..., Any], args: Any, kwargs: Any, target: str) -> list[PlannedGraph]:
    from torch._dynamo.utils import get_compilation_metrics
    from torch._inductor.compile_fx import compile_fx

    graphs: list[PlannedGraph] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        info = graph_info(gm)
        run = gm.forward
        _take_target_attention(gm)
        plans: list[Plan] = []
        with pretended_to_inductor(gpu(target)), planning(plans):
            compile_fx(gm, example_inputs)
        graphs.extend(
            PlannedGraph(
                compile_id=info.compile_id,
                ops=info.nodes,
                break_reason=info.break_reason,
                source=info.source,
                launches=plan.launches,
                allocations=plan.allocations,
                reused=plan.reused,
                copied=plan.copied,
                copied_bytes=plan.copied_bytes,
                guards=None,
            )
            for plan in plans
        )
        return run

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(call, backend=backend)(*args, **kwargs)
        guards = {metrics.compile_id: metrics.guard_count for metrics in get_compilation_metrics()}
    finally:
        torch._dynamo.reset()
    return [msgspec.structs.replace(graph, guards=guards.get(graph.compile_id)) for graph in graphs]


def _cause(error: BaseException) -> BaseException:
    """What went wrong below Dynamo's and Inductor's own wrapping."""
    inner = getattr(error, "inner_exception", None) or error.__cause__
    return error if inner is None else _cause(inner)


def _line(error: BaseException) -> SourceLine | None:
    """The author's innermost line on the way to ``error``."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if foreign(frame.filename)]
    return SourceLine(file=frames[-1].filename, line=frames[-1].lineno or 0) if frames else None


def _take_target_attention(gm: torch.fx.GraphModule) -> None:
    """Each attention of the graph issues the ops of the target's backend: without a driver torch would take math."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is SDPA:
            node.target = attend
    gm.recompile()


def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
