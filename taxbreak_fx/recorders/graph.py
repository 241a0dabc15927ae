"""Measure one captured graph on snapshots of its inputs, in the process of the program that is being compiled.

What the graph may write is copied first, so the program's own tensors, gradients and version counters stay untouched;
parameters, which a measured graph must not write, are used where they are.  The number of repetitions is fixed before
the first one, so that several ranks run their collectives equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import torch
from torch.utils._pytree import tree_map_only

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.model import GraphInfo, StepInfo
from taxbreak_fx.recorders.bench import WARMUP_PAIRS, Bench, quiet_gc
from taxbreak_fx.recorders.in_situ import FEWEST_STEPS
from taxbreak_fx.recorders.library import STEPS as LISTENING_STEPS
from taxbreak_fx.recorders.outputs import OutputReference
from taxbreak_fx.recorders.timing import Captured, time_built
from taxbreak_fx.recorders.tracing import trace_built
from taxbreak_fx.recording import Replay, Timing, Trace
from taxbreak_fx.replay import replay_all, replay_smallest
from taxbreak_fx.state import tensors_of
from taxbreak_fx.variant_graph import GraphVariant, graph_tensors
from taxbreak_fx.variant_record import OutputCheck
from taxbreak_fx.workload import Workload

PAIRS = 20
FEWEST_PAIRS = 5
# Passes of a variant beside its pairs: builds, finding and recording its sites, clocked passes, output check.
OTHER_STEPS = 3 + 2 + 2 + FEWEST_STEPS + 2


def freeze_inputs(inputs: Sequence[Any], copy_parameters: bool = False) -> list[Any]:
    """The inputs with every storage copied once, so that aliasing, offsets, strides and ``requires_grad`` survive.

    Parameters are shared unless ``copy_parameters``.  Raises ``CaptureError`` for tensors that no copy can stand for.
    """
    copies: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise CaptureError(f"an input is a {type(tensor).__name__}, of which no plain copy can be made")
        if tensor.layout is not torch.strided or tensor.device.type not in ("cpu", "cuda"):
            raise CaptureError(
                f"an input is {tensor.layout} on {tensor.device}: only dense CPU and CUDA tensors are copied"
            )
        # A parameter without a version counter could be written unnoticed.
        if isinstance(tensor, torch.nn.Parameter) and not copy_parameters and not tensor.is_inference():
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in copies:
            copies[storage._cdata] = storage.clone()
        frozen = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        frozen.set_(copies[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        return frozen.requires_grad_() if tensor.requires_grad and not frozen.is_inference() else frozen

    with torch.no_grad():
        return [keep(value) for value in inputs]


class _Hidden:
    """A callable that a snapshot does not look into: a graph refers to all of Dynamo's bookkeeping."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run

    def __call__(self) -> Any:
        return self._run()


class GraphBench(Bench):
    """A bench whose step is one captured graph; the base of its pairs is the graph run as it is.

    Raises ``CaptureError`` when the graph cannot be run on ``inputs``.
    """

    def __init__(
        self,
        base: GraphVariant,
        gm: torch.fx.GraphModule,
        inputs: list[Any],
        step: StepInfo,
        device: Literal["cuda", "cpu"],
    ) -> None:
        state = (inputs, graph_tensors(gm))
        super().__init__(Workload(call=_Hidden(base.call), model="graph", step=step, state=state), device, 0.0)
        self.eager = base
        self.gm, self.inputs = gm, inputs
        self.count = PAIRS
        with torch.no_grad():
            self.timed(base)
            self.step_s = self.timed(base)[0] / 1e6

    def cost_s(self, pairs: int) -> float:
        """About how long one more variant takes with so many pairs, if it is as slow as the base; seconds."""
        listening = LISTENING_STEPS if self.device == "cuda" else 0
        return self.step_s * (2 * (pairs + WARMUP_PAIRS) + OTHER_STEPS + listening)

    def pairs(self, built: Any) -> list[tuple[float, float, float, float]]:
        """As ``Bench.pairs`` with ``count`` pairs; the base against itself is one series, not two."""
        rows: list[tuple[float, float, float, float]] = []
        with torch.no_grad(), quiet_gc():
            for _ in range(WARMUP_PAIRS):
                self.timed(self.eager)
                self.timed(built)
            for number in range(self.count):
                if built is self.eager:
                    own = base = self.timed(built)
                elif number % 2:
                    own, base = self.timed(built), self.timed(self.eager)
                else:
                    base, own = self.timed(self.eager), self.timed(built)
                rows.append((*own, *base))
        return rows


class GraphReference(OutputReference):
    """Outputs of the graph in higher precision: the same code on converted inputs."""

    _bench: GraphBench

    def check(self, name: str, step: Callable[[], Any]) -> tuple[OutputCheck | None, str | None]:
        """As ``OutputReference.check``; a graph that draws random numbers has no outputs to compare."""
        if self._bench.snapshot.uses_rng:
            return None, "the graph draws random numbers, and each way of compiling it draws its own"
        return super().check(name, step)

    def _in_reference_dtype(self) -> Any:
        def convert(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        if any(tensor.is_floating_point() for tensor in graph_tensors(self._bench.gm)):
            raise TypeError("the graph holds tensors of its own, which are not converted")
        return self._bench.gm.forward(*tree_map_only(torch.Tensor, convert, self._bench.inputs))


def graph_step(inputs: Sequence[Any], device: str) -> StepInfo:
    """What is known of a captured graph's step: the dtype most of its inputs have, and the device."""
    dtypes = [str(tensor.dtype)[6:] for tensor in tensors_of(list(inputs)) if tensor.is_floating_point()]
    dtype = max(sorted(set(dtypes)), key=dtypes.count) if dtypes else "float32"
    return StepInfo(phase="forward", batch=None, seq_len=None, dtype=dtype, device=device)


def time_graph(
    bench: GraphBench, built: GraphVariant, compile_s: float | None, info: GraphInfo, reference: GraphReference
) -> Timing:
    """Time one variant of the graph in pairs with the graph as captured.

    What fails after the pairs leaves its reason and costs no more; errors of the variant itself pass through.
    """
    with torch.no_grad():
        for _ in range(built.build_calls):
            bench.step(built)
    timing = time_built(bench, built.name, built, compile_s, reference, _replays)
    observed = timing.in_situ is not None or built.graphed
    return msgspec.structs.replace(timing, graphs=[info], sites=timing.sites if observed else [])


def trace_graph(bench: GraphBench, built: GraphVariant) -> Trace:
    """Trace one variant of the graph (CUDA only).  Raises ``MeasurementError`` when the profiler returns no kernel."""
    return trace_built(bench, built.name, built)


def _replays(bench: GraphBench, captured: Captured) -> list[Replay]:
    """Hot replays of the leaf ops: on the CPU device at their smallest shapes, which is all its decomposition reads.

    A collective is not replayed: another rank may not be in the same loop.
    """
    alone = [call for call in captured.leaves.values() if "c10d" not in call.op]
    replays = replay_smallest(alone) if bench.device == "cpu" else replay_all(alone, "leaf", bench.sync)
    level: Literal["leaf", "smallest"] = "smallest" if bench.device == "cpu" else "leaf"
    replays += [
        Replay(key=call.key, level=level, op=call.op, dtype=call.dtype, host_us=None, failure="a collective")
        for call in captured.leaves.values()
        if "c10d" in call.op
    ]
    bench.snapshot.restore()
    return replays
