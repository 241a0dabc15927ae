"""The Python API: review a step in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review, StepInfo
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.request import check_variants
from taxbreak_fx.stages import Outcome, assemble, plan, unneeded
from taxbreak_fx.state import tensors_of
from taxbreak_fx.workload import Workload


@dataclass(frozen=True)
class Options:
    """How to review.  No ``variants`` means all that the device supports; ``budget_s`` is spent on each one's pairs.

    ``state`` lists objects the step writes that cannot be reached from the callable or its arguments.
    """

    variants: Sequence[str] = ()
    budget_s: float = 6.0
    name: str | None = None
    state: tuple[Any, ...] = ()


def review(step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Review:
    """Measure ``step(*args, **kwargs)`` under every variant of its device and decompose each.

    ``step`` is a module or function that runs one forward call or decode step; it is run many times, and the state it
    writes is restored around every run.  Runs in this process: a variant that fails is reported, but one that poisons
    the CUDA context takes the process's later variants with it (use the CLI for those).

    Raises ``UsageError`` when ``step`` is not callable or its tensors are on several devices, ``CaptureError`` when the
    step fails as it is.
    """
    return review_with(Options(), step, *args, **kwargs)


def review_with(options: Options, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Review:
    """As ``review``, with ``options``.  Raises ``UsageError`` also for a variant or a budget that cannot be."""
    if not callable(step):
        raise UsageError(f"review needs a callable step, not {type(step).__name__}")
    if not (math.isfinite(options.budget_s) and options.budget_s > 0):
        raise UsageError(f"budget_s must be a positive number of seconds, got {options.budget_s:g}")
    tensors = tensors_of((step, args, kwargs, options.state))
    device = _device({tensor.device.type for tensor in tensors})
    variants = check_variants(options.variants, device)
    dtypes = [str(tensor.dtype)[6:] for tensor in tensors if tensor.is_floating_point()]
    dtype = max(set(dtypes), key=dtypes.count) if dtypes else "float32"
    info = StepInfo(phase="forward", batch=None, seq_len=None, dtype=dtype, device=device)
    name = options.name or str(getattr(step, "__qualname__", type(step).__qualname__))
    workload = Workload(call=step, model=name, step=info, args=args, kwargs=kwargs, state=options.state)
    runner = Runner(workload, device, options.budget_s)
    outcomes: list[Outcome] = []
    for stage in plan(variants, device):
        skip = unneeded(stage, outcomes)
        outcomes.append(Outcome(stage=stage, seconds=0.0, failure=skip) if skip is not None else runner.run(stage))
        if outcomes[-1].fatal:
            break
    return assemble(outcomes, variants, device)


def _device(types: set[str]) -> Literal["cuda", "cpu"]:
    accelerators = types - {"cpu"}
    if accelerators == {"cuda"}:
        return "cuda"
    if not accelerators:
        return "cpu"
    raise UsageError(f"the step's tensors are on {', '.join(sorted(accelerators))}; supported devices: cuda, cpu")
