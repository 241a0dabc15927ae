"""The callable that Dynamo is given for a graph: it measures at its first call, and then is out of the way."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo import eval_frame
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from taxbreak_fx.backend_ranks import Ranks, fingerprint
from taxbreak_fx.backend_session import BASE, Session
from taxbreak_fx.errors import CaptureError, TaxbreakError
from taxbreak_fx.model import GraphInfo
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.recorders.graph import freeze_inputs
from taxbreak_fx.variant_graph import GRAPHED, Compiled, graph_tensors

log = logging.getLogger("taxbreak_fx")
_measuring = threading.Lock()
TREES_IN_USE = "another graph runs from CUDA graphs already: recording now would overwrite its live outputs"
_trees_in_use = False  # CUDA graph trees keep their outputs in memory that the next recording reuses


class GraphCallable:
    """``__call__`` is the graph.  The first call runs it as captured, then measures on copies of what it was given.

    Whatever goes wrong with the measuring is one logged line and a note in the review, and the graph runs as captured.
    """

    def __init__(
        self,
        session: Session,
        gm: torch.fx.GraphModule,
        info: GraphInfo,
        compiled: Mapping[str, Compiled],
        failures: Mapping[str, str],
        connect: Callable[[float], Ranks | None],
    ) -> None:
        self._session, self._gm, self._info = session, gm, info
        self._compiled, self._failures, self._connect = dict(compiled), dict(failures), connect
        self._run: Callable[..., Any] = self._first

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def _first(self, *args: Any) -> Any:
        if not _measurable_now() or not _measuring.acquire(blocking=False):
            return self._gm.forward(*args)
        try:
            inputs, reason = self._copies(args)
            shared = [(tensor, tensor._version) for tensor in self._shared(args)]
            output = self._gm.forward(*args)
            if reason is None and any(tensor._version != version for tensor, version in shared):
                reason = "the graph writes a parameter in place, or a tensor of its own"
            chosen = self._measured(inputs, reason)
        finally:
            _measuring.release()
        self._settle(chosen)
        return output

    def _copies(self, args: Sequence[Any]) -> tuple[list[Any], str | None]:
        if self._session.exhausted():
            return [], f"over budget: {self._session.options.budget_s:g} s are spent"
        try:
            # A Triton kernel of the author's writes through a bare pointer: no version counter would tell.
            return freeze_inputs(args, copy_parameters=_runs_custom_kernels(self._gm)), None
        except (TaxbreakError, RuntimeError, NotImplementedError) as error:
            return [], _why(error)

    def _shared(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors that measuring uses where they are; one without a version counter is copied instead."""
        parameters = [arg for arg in args if isinstance(arg, torch.nn.Parameter)]
        return [tensor for tensor in (*parameters, *graph_tensors(self._gm)) if not tensor.is_inference()]

    def _measured(self, inputs: list[Any], reason: str | None) -> str:
        """The variant to use from now on."""
        session = self._session
        names = list(self._compiled)
        best, ranks = BASE, None
        try:
            ranks = self._connect(session.options.timeout_s)
            if ranks is not None:
                offered, names = (names if reason is None else []), []
                names, refused = ranks.agree(fingerprint(repr(session.options), self._gm.code), offered)
                reason = reason or refused or (None if names else "another rank cannot measure this graph")
            if reason is not None:
                raise CaptureError(reason)
            failures = self._failures | dict.fromkeys(self._compiled.keys() - set(names), "failed on another rank")
            if _trees_in_use:
                failures |= dict.fromkeys([name for name in names if name in GRAPHED], TREES_IN_USE)
            compiled = {name: self._compiled[name] for name in names if name not in failures}
            with same_rng():
                best = session.measure(
                    self._gm,
                    self._info,
                    compiled,
                    failures,
                    inputs,
                    grad=torch.is_grad_enabled(),
                    bounded=ranks is None,
                )
        except Exception as error:  # the program goes on, whatever becomes of the measuring
            text = f"graph {self._info.compile_id} is not measured: {_why(error)}"
            session.note(text)
            log.warning("taxbreak: %s", text)
        if session.options.run == "best":
            # Ranks must run the same code, also where the measuring failed on one of them.
            return best if ranks is None or not names else ranks.choose(best, BASE)
        return session.options.run if session.options.run in names else BASE

    def _settle(self, chosen: str) -> None:
        run = _unwrapped(self._compiled[chosen].run if chosen in self._compiled else self._gm.forward)
        self._compiled.clear()

        def second(*args: Any) -> Any:
            global _trees_in_use
            self._run = run
            self._steady()
            _trees_in_use = _trees_in_use or chosen in GRAPHED
            return run(*args)

        self._run = second

    def _steady(self) -> None:
        """The second call: every graph of a step has been timed, so traces may follow, and the table."""
        if not _measurable_now() or not _measuring.acquire(blocking=False):
            return
        try:
            ranks = self._connect(self._session.options.timeout_s)
            alone = ranks is None or not self._session.wants_traces()
            if ranks is not None and not alone:
                alone = bool(ranks.agree("traces", [BASE])[0])
            with same_rng():
                self._session.finish(alone)
        except Exception as error:  # the program goes on, whatever becomes of the traces
            log.warning("taxbreak: no traces: %s", _why(error))
        finally:
            _measuring.release()


@contextlib.contextmanager
def same_rng() -> Iterator[None]:
    """The random number generators are afterwards as they were, on the CPU and on every CUDA device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


def _measurable_now() -> bool:
    """Not inside the recording of a CUDA graph, nor while another tool watches or fakes every op."""
    if torch.cuda.is_available() and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return False
    return not _get_current_dispatch_mode_stack()


def _runs_custom_kernels(gm: torch.fx.GraphModule) -> bool:
    return any(
        "triton_kernel_wrapper" in str(node.target)
        for module in gm.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_function"
    )


def _unwrapped(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` without the wrapper by which a compiler keeps Dynamo out of it: Dynamo wraps ``GraphCallable`` so itself.

    Only the wrapper's own code tells it: its mark is copied by ``functools.wraps`` and seen through bound methods.
    """
    code = getattr(run, "__code__", None)
    if code is None or code.co_filename != eval_frame.__file__:
        return run
    inner: Callable[..., Any] = getattr(run, "_torchdynamo_orig_callable", run)
    return inner


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, TaxbreakError) else one_line(error)
