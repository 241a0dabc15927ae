"""``torch.compile(model, backend="taxbreak")``: found by its entry point, measures the graphs that Dynamo captures.

The program's own Python is never run again.  ``TAXBREAK=0`` in the environment makes the backend a pass-through.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from taxbreak_fx import backend_ranks, schema
from taxbreak_fx.backend_graph import GraphCallable, same_rng
from taxbreak_fx.backend_options import BackendOptions, parse
from taxbreak_fx.backend_ranks import Ranks
from taxbreak_fx.backend_session import BASE, Session
from taxbreak_fx.errors import OutputError
from taxbreak_fx.graph_facts import graph_info
from taxbreak_fx.model import GraphInfo, Review
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.report import content
from taxbreak_fx.report.text import render
from taxbreak_fx.variant_graph import Compiled, compile_graph

TABLE_WIDTH = 100

log = logging.getLogger("taxbreak_fx")
_sessions: dict[tuple[BackendOptions, str], Session] = {}
_ranks: tuple[Any, Ranks] | None = None


def taxbreak(
    gm: torch.fx.GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend: a callable for ``gm`` that measures at its first call and then runs the chosen variant.

    ``options`` are those of ``BackendOptions``; ``mode`` is one of Inductor's.  Raises ``UsageError`` for an option
    that does not exist or has a wrong value, ``OutputError`` when ``out`` cannot be a folder.
    """
    if os.environ.get("TAXBREAK") == "0":
        return gm.forward
    chosen = parse(options, mode)
    info = graph_info(gm)
    if info.nodes == 0:
        return gm.forward
    devices = _devices(gm, example_inputs)
    device: Literal["cuda", "cpu"] = "cuda" if any(name.startswith("cuda") for name in devices) else "cpu"
    session = _session(chosen, device)
    session.name = session.name or _model_name(gm)
    foreign = sorted(name for name in devices if not name.startswith(("cpu", "cuda")))
    if foreign or len({name for name in devices if name.startswith("cuda")}) > 1:
        where = ", ".join(sorted(devices))
        session.note(f"graph {info.compile_id} is not measured and runs as captured: its tensors are on {where}")
        return gm.forward
    # With the budget spent nothing will be measured, and only what calls are to run is worth compiling.
    names = () if session.exhausted() else chosen.measured(device)
    wanted = () if chosen.run in ("best", "eager") else (chosen.run,)
    compiled, failures = _compile_all(gm, example_inputs, dict.fromkeys((BASE, *names, *wanted)), chosen.mode, info)
    return GraphCallable(session, gm, info, compiled, failures, _connect)


def _compile_all(
    gm: torch.fx.GraphModule, example_inputs: list[Any], names: Iterable[str], mode: str, info: GraphInfo
) -> tuple[dict[str, Compiled], dict[str, str]]:
    """Every variant compiled, here inside Dynamo's tracing context, or the reason why it is not."""
    compiled: dict[str, Compiled] = {}
    failures: dict[str, str] = {}
    for name in names:
        try:
            compiled[name] = compile_graph(name, gm, example_inputs, mode)
        except torch._dynamo.exc.RestartAnalysis:
            raise  # no failure: the compiler asks Dynamo to capture again, differently
        except Exception as error:  # a compiler that fails costs its own variant only, and is reported
            failures[name] = one_line(error)
            log.warning("taxbreak: graph %s, variant %s: %s", info.compile_id, name, failures[name])
    return compiled, failures


def report() -> list[Review]:
    """Finish what is measured (traces, files, table) and return one review per set of options and device."""
    reviews = []
    for session in list(_sessions.values()):
        with same_rng():
            review = session.finish(alone=_connect(session.options.timeout_s) is None)
        if review is not None:
            reviews.append(review)
    return reviews


def reset() -> None:
    """Finish what is measured and forget it; ``torch._dynamo.reset()`` calls this."""
    try:
        report()
    except Exception as error:  # a reset must not fail for the sake of a report
        log.warning("taxbreak: no report: %s", one_line(error))
    _sessions.clear()


taxbreak.reset = reset  # type: ignore[attr-defined]
atexit.register(reset)


def _session(options: BackendOptions, device: Literal["cuda", "cpu"]) -> Session:
    key = (options, device)
    if key not in _sessions:
        writes = options.out is not None and _rank() == 0
        folder = _folder(Path(options.out)) if writes and options.out is not None else None
        # One set of options may meet graphs of two devices: a small one on the CPU beside the model's own.
        first = not any(other == options for other, _ in _sessions)
        file = "review.json" if first else f"review-{device}.json"
        _sessions[key] = Session(options, device, folder, file, lambda review: _publish(review, options))
    return _sessions[key]


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"out {str(path)!r} cannot be a folder ({error.strerror}); choose another") from error
    return path


def _connect(timeout_s: float) -> Ranks | None:
    """The other ranks; the same object for as long as the process group is the same."""
    global _ranks
    fresh = backend_ranks.connect(timeout_s)
    if fresh is None:
        return None
    group = torch.distributed.group.WORLD
    if _ranks is None or _ranks[0] is not group:
        _ranks = (group, fresh)
    return _ranks[1]


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdigit() else 0


def _publish(review: Review, options: BackendOptions) -> None:
    """Give the review to torch's structured trace, and log the short table on rank 0."""
    try:
        from torch._logging._internal import trace_structured_artifact

        trace_structured_artifact("taxbreak_review", "json", lambda: schema.encode(review).decode())
    except (ImportError, AttributeError, TypeError) as error:  # private to torch, and not needed
        log.debug("taxbreak: no structured trace: %s", one_line(error))
    if options.quiet or _rank() != 0:
        return
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler(sys.stderr))
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    log.info("%s", short_table(review))


def short_table(review: Review) -> str:
    """The head lines and the table of variants."""
    table = content.variants_table(review)
    lines, _ = render(table, TABLE_WIDTH)
    graphs = f"{len(review.graphs)} captured graph{'s' if len(review.graphs) != 1 else ''}, each counted once"
    return "\n".join(["taxbreak: " + content.headline(review)[0], graphs, table.title, *lines, *table.under])


def _devices(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> set[str]:
    """The devices of the graph's tensors, as torch writes them; a graph without inputs has only those of its nodes."""
    values = [*example_inputs, *gm.parameters(), *gm.buffers()]
    values += [node.meta.get("example_value") for node in gm.graph.nodes]
    found = {str(value.device) for value in values if isinstance(value, torch.Tensor)}
    # A scalar on the CPU may stand beside tensors on a GPU.
    return {name for name in found if not name.startswith("cpu")} or {"cpu"}


def _model_name(gm: torch.fx.GraphModule) -> str | None:
    """The class of the outermost module that a node of the graph came from."""
    for node in gm.graph.nodes:
        for _, kind in (node.meta.get("nn_module_stack") or {}).values():
            return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]
    return None
