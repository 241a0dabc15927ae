"""What Dynamo and Inductor say of a graph while they compile it: its place and break, and what stays un-graphed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from taxbreak_fx.model import GraphInfo
from taxbreak_fx.record import SourceLine
from taxbreak_fx.sources import foreign, node_source, stack_source
from taxbreak_fx.variant_record import GraphSkip

_SKIPPING = "skipping cudagraphs due to "


@contextlib.contextmanager
def graph_skips(notes: list[str], skips: list[GraphSkip]) -> Iterator[None]:
    """Add to both what Inductor says when it leaves a graph, or an op between two, un-graphed: it does so unasked.

    ``notes`` receives its words on whole graphs, ``skips`` all of it with the author's line.  Where Inductor takes the
    code from its cache it decides nothing about single ops anew, and so says nothing of them.
    """
    from torch._inductor import cudagraph_utils
    from torch._inductor.scheduler import Scheduler

    log = cudagraph_utils.cudagraphs_log
    warning = log.warning
    decide = Scheduler.should_partition

    def heard(message: str, *args: Any, **kwargs: Any) -> None:
        text = str(message) % args if args else str(message)
        note = " ".join(text.split())[:300]
        if note not in notes:
            notes.append(note)
        reason = " ".join(text.split("Found from")[0].split()).rstrip(".")
        if reason.startswith(_SKIPPING):
            _add(skips, GraphSkip(reason=reason.removeprefix(_SKIPPING), source=stack_source(text)))
        warning(message, *args, **kwargs)

    def deciding(scheduler: Any, node: Any, *args: Any, **kwargs: Any) -> Any:
        reason = decide(scheduler, node, *args, **kwargs)
        if reason and torch._inductor.config.triton.cudagraphs:  # else no op is graphed, and none is left out
            origin = node.node.get_origin_node() if node.node is not None else None
            source = None if origin is None else node_source(origin)
            # Torch 2.11 answers yes or no, 2.13 with the reason.
            what = reason if isinstance(reason, str) else "an op that a CUDA graph cannot hold"
            target = getattr(origin, "target", None)
            name = f"{what}: {target}" if isinstance(target, torch._ops.OpOverload) else what
            _add(skips, GraphSkip(reason=name, source=source, partition=True))
        return reason

    with mock.patch.object(log, "warning", heard), mock.patch.object(Scheduler, "should_partition", deciding):
        yield


def _add(skips: list[GraphSkip], skip: GraphSkip) -> None:
    if skip not in skips:
        skips.append(skip)


def graph_info(gm: torch.fx.GraphModule) -> GraphInfo:
    """Compile id, size, break reason, cause and place of the graph that Dynamo is compiling now."""
    compile_id = torch._guards.CompileContext.current_compile_id()
    reason = getattr(gm, "compile_subgraph_reason", None)
    broken = reason is not None and getattr(reason, "graph_break", False)
    source = None
    if broken:
        for frame in reversed(getattr(reason, "user_stack", None) or []):
            if foreign(frame.filename):
                source = SourceLine(file=frame.filename, line=frame.lineno or 0)
                break
    calls = sum(node.op.startswith("call_") for node in gm.graph.nodes)
    text = " ".join(str(getattr(reason, "reason", "")).split())[:300] if broken else None
    again = _recompile_reason()
    return GraphInfo(
        compile_id=str(compile_id),
        nodes=calls,
        break_reason=text,
        source=source,
        recompile_reason=None if again is None else " ".join(again.split("User stack trace")[0].split())[:600],
        recompile_source=stack_source(again),
        frame=_frame(),
    )


def _recompile_reason() -> str | None:
    """Why Dynamo compiles this frame again, from the metrics that it keeps while it compiles (private to torch)."""
    metrics = torch._dynamo.utils.get_metrics_context()
    found = getattr(metrics, "_metrics", {}).get("recompile_reason") if metrics.in_progress() else None
    return None if found is None else str(found)


def _frame() -> SourceLine | None:
    """First line of the ``forward`` that Dynamo began this graph in (not of a decorator around it), else of the first
    function outside torch that it traced, where it keeps them (private to torch)."""
    context = torch._guards.TracingContext.try_get()
    traced = [code for code in getattr(context, "traced_code", None) or () if foreign(code.co_filename)]
    code = next((code for code in traced if "forward" in code.co_name), traced[0] if traced else None)
    return None if code is None else SourceLine(file=code.co_filename, line=code.co_firstlineno)
