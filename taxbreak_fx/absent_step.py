"""The step that a request names, built on fake tensors for a GPU that is not there, and its op stream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec
import torch

from taxbreak_fx import state
from taxbreak_fx.absent_gpu import AbsentGpu, gpu, pretending
from taxbreak_fx.errors import DeviceError
from taxbreak_fx.fake_step import record_step, step_calls
from taxbreak_fx.known_values import KnownValues
from taxbreak_fx.models import load
from taxbreak_fx.predicted import FakeStep
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.workload import Workload

# The prompt of a decode step runs with eager experts, whose loop needs data.  This one needs none, takes any dtype, and
# the memory that it gathers is not there to run out.
_PROMPT_EXPERTS = "batched_mm"


@dataclass(frozen=True)
class AbsentStep:
    """A workload of fake tensors and the modes it lives in: ``known`` followed its constants since it was built."""

    workload: Workload
    known: KnownValues
    mode: Any

    @property
    def top_k(self) -> int | None:
        """Experts per token; None for a dense model or one that does not say."""
        config = getattr(self.workload.call, "config", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        return chosen if isinstance(chosen, int) else None

    @property
    def weight_bytes(self) -> int:
        """Parameters and buffers of the step's module; 0 for a function."""
        call = self.workload.call
        if not isinstance(call, torch.nn.Module):
            return 0
        held = {id(tensor): tensor for tensor in (*call.parameters(), *call.buffers())}
        return sum(tensor.numel() * tensor.itemsize for tensor in held.values())

    @property
    def input_bytes(self) -> int:
        """Memory behind the step's inputs, its cache among them."""
        given = state.tensors_of([self.workload.args, self.workload.kwargs, self.workload.state])
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in given}
        return sum(storages.values())


@contextlib.contextmanager
def absent_step(request: ReviewRequest, target: str) -> Iterator[AbsentStep]:
    """Build the step of ``request`` for the GPU ``target`` and stay in its fake mode.

    Weights are never loaded: ``request.weights`` is left aside, since no op depends on their values.  Raises as
    ``models.load`` does, ``UsageError`` for an unknown target, ``DeviceError`` where a CUDA device is visible,
    ``MeasurementError`` without the device guard.
    """
    eager_experts = request.experts_implementation == "eager"
    known = KnownValues(assume_routing=eager_experts, seed=request.seed)
    with pretending(gpu(target)) as mode, _eager_answers():
        with _no_eager_experts(), _no_initialisation(), known:
            workload = load(msgspec.structs.replace(request, weights=False, device="cuda"), "cuda")
        known.assumptions.clear()  # those of the prompt
        if eager_experts:
            workload.call.set_experts_implementation("eager")  # type: ignore[attr-defined]  # load saw that it can
        yield AbsentStep(workload, known, mode)


def record_fake_step(request: ReviewRequest, target: str = "h200", capturing: bool = False) -> FakeStep:
    """The op stream of the step that ``request`` names, as eager would run it on ``target``.

    ``capturing``: as it would under capture of a CUDA graph, where models leave out what a graph cannot hold.

    It runs where no CUDA device is visible; ``dry_run.record_apart`` sees to that.  Raises as ``absent_step`` does,
    ``DeviceError`` where ``target`` has no room for it, and ``CaptureError`` where it needs the data of a tensor.
    """
    started = time.perf_counter()
    with absent_step(request, target) as made, _capturing(capturing):
        _require_room(made, gpu(target))
        sites, ops = record_step(made.workload, made.known, made.top_k)
        modules, functions = step_calls(made.workload, made.known)
        return FakeStep(
            model=made.workload.model,
            target=gpu(target).name,
            step=made.workload.step,
            sites=sites,
            ops=ops,
            modules=modules,
            functions=functions,
            assumptions=list(made.known.assumptions),
            weight_bytes=made.weight_bytes,
            versions=versions(),
            seconds=time.perf_counter() - started,
        )


def _require_room(made: AbsentStep, target: AbsentGpu) -> None:
    """Raise ``DeviceError`` for a step whose weights and inputs alone are more than the GPU's memory.

    What it makes on its way comes on top and is not known before it runs.
    """
    needed = made.weight_bytes + made.input_bytes
    if needed > target.total_memory:
        raise DeviceError(
            f"{made.workload.model} needs {needed / 1e9:.1f} GB for its weights, inputs and cache, and "
            f"{target.name} has {target.total_memory / 1e9:.1f} GB: choose a smaller batch, sequence, model or dtype"
        )


def _capturing(whether: bool) -> Any:
    """The model is told, when it asks, whether a CUDA graph is being captured."""
    return mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: whether)


def versions() -> dict[str, str]:
    """The packages that decide which ops a step dispatches and which kernels Inductor makes of them."""
    import transformers

    return {"torch": str(torch.__version__), "transformers": transformers.__version__}


@contextlib.contextmanager
def _eager_answers() -> Iterator[None]:
    """transformers takes a fake tensor for a sign of tracing, and then leaves out checks that an eager step makes."""
    from transformers.utils import import_utils

    with mock.patch.object(import_utils, "is_fake_tensor", lambda tensor: False):
        yield


@contextlib.contextmanager
def _no_eager_experts() -> Iterator[None]:
    """Every model that is told to loop over its experts uses ``_PROMPT_EXPERTS`` instead."""
    from transformers import PreTrainedModel

    choose = PreTrainedModel.set_experts_implementation

    def chosen(model: Any, implementation: Any) -> Any:
        return choose(model, _PROMPT_EXPERTS if implementation == "eager" else implementation)

    with mock.patch.object(PreTrainedModel, "set_experts_implementation", chosen):
        yield


@contextlib.contextmanager
def _no_initialisation() -> Iterator[None]:
    """Weights keep the nothing they hold: filling them takes time, and ``trunc_normal_`` reads back what it drew."""
    from transformers import PreTrainedModel

    with (
        mock.patch.object(PreTrainedModel, "initialize_weights", lambda model: None),
        mock.patch.object(torch.nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor),
    ):
        yield
