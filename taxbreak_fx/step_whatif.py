"""Records a step for the what-ifs: uncompiled, as Dynamo's graphs, and as the kernels that Inductor makes of them.

Nothing is timed, and each runs once, so this needs no process of its own: a crash costs no measurement.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from taxbreak_fx.errors import CaptureError, TaxbreakError
from taxbreak_fx.inductor_kernels import inductor_kernels
from taxbreak_fx.op_graph import captured_graph, eager_graph
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.state import Snapshot
from taxbreak_fx.whatif_fusion import Recorded
from taxbreak_fx.workload import Workload

T = TypeVar("T")

NOT_ASKED = "not asked for; add --inductor"
ON_CPU = (
    "recorded on the CPU: ops are those that the CPU dispatches (attention above all differs on a GPU), and what would "
    "stay on the CPU beside a GPU cannot be told from the rest"
)


def record_step(
    workload: Workload, inductor: bool = False, on_stage: Callable[[str], None] = lambda stage: None
) -> Recorded:
    """Run ``workload`` once in each form; what it writes is put back after each run.  Ops are classified for a GPU.

    ``on_stage`` is told what comes next.  Raises ``CaptureError`` when the step does not run uncompiled; or writes a
    parameter; that it cannot be captured or compiled is a result, with its reason.
    """
    snapshot = Snapshot([workload.call, workload.args, dict(workload.kwargs), *workload.state])
    on_stage("eager")
    try:
        with torch.no_grad():
            workload.run()
    except Exception as error:  # whatever the step raises is its author's to mend
        raise CaptureError(f"the step fails when run as it is: {one_line(error)}") from error
    snapshot.settle()
    snapshot.restore()
    eager = eager_graph(workload)
    snapshot.restore()
    captured, not_captured = _tried("dynamo", lambda: captured_graph(workload), snapshot, on_stage)
    kernels, not_compiled = None, NOT_ASKED
    if captured is None:
        not_compiled = f"not captured: {not_captured}"
    elif inductor:
        kernels, not_compiled = _tried("inductor", lambda: inductor_kernels(workload), snapshot, on_stage)
    return Recorded(
        model=workload.model,
        step=workload.step,
        torch=str(torch.__version__),
        transformers=_transformers(),
        eager=eager,
        captured=captured,
        not_captured=not_captured or None,
        kernels=kernels,
        not_compiled=not_compiled or None,
        notes=[] if workload.step.device == "cuda" else [ON_CPU],
    )


def _tried(
    stage: str, run: Callable[[], T], snapshot: Snapshot, on_stage: Callable[[str], None]
) -> tuple[T | None, str]:
    """What ``run`` returns, or why it failed."""
    on_stage(stage)
    try:
        with _unlogged():
            return run(), ""
    except Exception as error:  # a compiler may fail on any model, with any exception
        return None, str(error) if isinstance(error, TaxbreakError) else one_line(error)
    finally:
        torch._dynamo.reset()
        snapshot.restore()


@contextmanager
def _unlogged() -> Iterator[None]:
    """Dynamo's warnings of graph breaks stay off stderr: the document has every break, with its line."""
    logger = logging.getLogger("torch._dynamo")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _transformers() -> str | None:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None
