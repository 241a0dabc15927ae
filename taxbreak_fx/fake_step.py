"""Records the op stream of a step on fake CUDA tensors: no weights, no GPU, a few seconds for the largest models.

The step runs as eager runs it, twice as on a real device: once for the composite ops of the author's calls, once for
the leaf ops below them.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from taxbreak_fx import state
from taxbreak_fx.call_counts import call_counts
from taxbreak_fx.capture import EagerRecorder, OpRecorder, RecordedSite, main_dtype, signature
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.known_values import KnownValues
from taxbreak_fx.op_facts import device_of, flops, launches, tensors_of, traffic
from taxbreak_fx.predicted import FakeOp
from taxbreak_fx.record import SourceLine
from taxbreak_fx.recording import Site
from taxbreak_fx.sdpa_policy import SDPA_OP, attend
from taxbreak_fx.target_ops import TargetOps
from taxbreak_fx.workload import Workload

T = TypeVar("T")


class _Stream(OpRecorder):
    """The ops of each site and, given ``stream``, what each of them reads, writes and launches."""

    def __init__(self, stream: list[FakeOp] | None = None, top_k: int | None = None) -> None:
        super().__init__()
        self._stream, self._top_k = stream, top_k

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)  # a fake tensor asks even for its device by an op
        site = self.current
        inputs = "" if self._stream is None else signature(args, kwargs)  # before the op writes into them
        try:
            # Its layout decides whether the author's next call copies: the target's, not that of the math fallback.
            result = (attend if func is SDPA_OP else func)(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise needs_data(func, site.label.source if site else None) from error
        if site is not None:
            site.ops.append(str(func))
            site.dtype = site.dtype or main_dtype(args, kwargs)
        if self._stream is not None:
            op = self._fact(func, args, kwargs, result, inputs)
            self._stream.append(op)
            if site is not None:
                site.leaf_keys.append(op.key)
        return result

    def _fact(self, func: Any, args: Any, kwargs: Any, result: Any, inputs: str) -> FakeOp:
        read, written = traffic(func, args, kwargs, result, self._top_k)
        kernels, memops = launches(func, args, kwargs, result)
        return FakeOp(
            op=str(func),
            inputs=inputs,
            outputs=signature(tensors_of(result), {}),
            dtype=main_dtype(args, kwargs),
            site=len(self.sites) - 1 if self.current is not None else None,
            device="cuda" if device_of(args, kwargs, result) == "cuda" else "cpu",
            read_bytes=read,
            written_bytes=written,
            flops=flops(func, args, kwargs, result),
            kernels=kernels,
            memops=memops,
        )


def needs_data(func: Any, source: SourceLine | None) -> CaptureError:
    """The error for an op at ``source`` whose result depends on content that a fake tensor does not have."""
    where = f" at {source}" if source is not None else ""
    return CaptureError(
        f"{func}{where} needs the data of a tensor, and a step that is not run has none: "
        "choose an implementation whose ops do not depend on data (for experts: grouped_mm or batched_mm)"
    )


def record_step(workload: Workload, known: KnownValues, top_k: int | None = None) -> tuple[list[Site], list[FakeOp]]:
    """The sites and leaf ops of one step of a workload built on fake tensors; call it inside the mode it was built in.

    ``known``: the mode that followed the constants of the workload since it was built.  ``top_k``: experts per token.
    Raises ``CaptureError`` where the step needs data, or its two passes met different calls.
    """
    stream: list[FakeOp] = []
    top = _sites(workload, known, _Stream(), composite=True)
    low = _sites(workload, known, _Stream(stream, top_k), composite=False)
    if [site.label for site in top] != [site.label for site in low]:
        raise CaptureError("two passes of the step met different calls: its work depends on data or on chance")
    sites = [
        Site(
            target=above.label.target,
            ops=tuple(above.ops),
            source=above.label.source,
            module_path=above.label.module_path,
            dtype=below.dtype,
            leaf_keys=tuple(below.leaf_keys),
        )
        for above, below in zip(top, low, strict=True)
    ]
    return sites, stream


def step_calls(workload: Workload, known: KnownValues) -> tuple[int, int]:
    """Module calls and other Python calls of one step, as ``call_counts``; where ``record_step`` can be called."""
    with known:
        args, kwargs, _ = _copied((workload.args, dict(workload.kwargs), workload.state))
    with torch.no_grad(), known, TargetOps():
        return call_counts(lambda: workload.call(*args, **kwargs))


def _sites(workload: Workload, known: KnownValues, recorder: _Stream, composite: bool) -> list[RecordedSite]:
    """One pass: the composite ops of each call, or the leaf ops that the target's attention backend makes of them."""
    with known:
        args, kwargs, more = _copied((workload.args, dict(workload.kwargs), workload.state))
    eager = EagerRecorder(recorder, [workload.call, args, kwargs, *more])
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode() if composite else torch.no_grad())
        modes.enter_context(known)
        if not composite:
            modes.enter_context(TargetOps())
        modes.enter_context(eager.watching_modules())
        modes.enter_context(eager)
        modes.enter_context(recorder)
        workload.call(*args, **kwargs)
    return recorder.sites


def _copied(values: T) -> T:
    """Each pass has a cache of its own, since a step advances it."""
    # Left to itself, deepcopy reaches for a fake tensor's data, which is not there, and damages the heap (torch 2.13).
    tensors = {id(tensor): tensor for tensor in state.tensors_of([values])}
    copies: dict[int, Any] = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    return copy.deepcopy(values, copies)
