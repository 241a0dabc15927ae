"""Whether a variant still computes what the step computes, judged against a run in higher precision.

A variant may differ from eager and be no worse: its error against the reference may be up to three times eager's own
(method.md, "Variants and attribution").  The reference runs in float32 for half-precision steps and in float64 for
float32 ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from taxbreak_fx.recorders.bench import Bench, one_line
from taxbreak_fx.state import tensors_of
from taxbreak_fx.variant_record import OutputCheck

NOT_FINITE = sys.float_info.max  # the error of outputs with NaN or infinity where eager has none: JSON has neither


class OutputReference:
    """Eager's outputs and the reference's, computed at first use and kept on the host."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._eager: list[torch.Tensor] | None = None
        self._reference: list[torch.Tensor] | None = None
        self._failure: str | None = None
        self._dtype = torch.float64 if bench.workload.step.dtype == "float32" else torch.float32
        dtype = getattr(torch, bench.workload.step.dtype, torch.float32)  # a step without floats has dtype "none"
        # Eager may meet the reference to the last bit; a variant then still may differ by a few roundings.
        self.floor = 4 * float(torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps)

    def check(self, name: str, step: Callable[[], Any]) -> tuple[OutputCheck | None, str | None]:
        """The variant's output check, or the reason there is none."""
        if self._reference is None and self._failure is None:
            self._prepare()
        if self._failure is not None or self._reference is None or self._eager is None:
            return None, self._failure
        with torch.no_grad():
            own = _outputs(step())
        if [tensor.shape for tensor in own] != [tensor.shape for tensor in self._eager]:
            return None, f"{name} returned tensors of other shapes than eager"
        variant_error = _error(own, self._reference)
        flips, total = 0, 0
        for a, b in zip(own, self._eager, strict=True):
            if a.dim() > 0:
                flips += int((a.argmax(-1) != b.argmax(-1)).sum())
                total += a[..., 0].numel()
        return OutputCheck(
            reference_dtype=str(self._dtype)[6:],
            eager_error=_error(self._eager, self._reference),
            variant_error=variant_error if math.isfinite(variant_error) else NOT_FINITE,
            top1_flips=flips,
            top1_total=total,
        ), None

    def _prepare(self) -> None:
        bench = self._bench
        try:
            with torch.no_grad():
                self._eager = _outputs(bench.step(bench.eager))
                bench.snapshot.restore()
                self._reference = _outputs(self._in_reference_dtype())
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            self._failure = f"no {str(self._dtype)[6:]} reference: {one_line(error)}"
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        if self._failure is None and not self._eager:
            self._failure = "the step returns no floating-point tensor to compare"
        if self._eager and self._reference and not math.isfinite(_error(self._eager, self._reference)):
            self._failure, self._reference = "eager's own outputs hold NaN or infinity", None

    def _in_reference_dtype(self) -> Any:
        """Run the step with every floating-point tensor it reaches widened in place, then put the tensors back."""
        bench = self._bench
        narrow = [tensor for tensor in tensors_of(bench.roots) if tensor.is_floating_point()]
        originals = [tensor.data for tensor in narrow]
        try:
            for tensor in narrow:
                tensor.data = tensor.data.to(self._dtype)
            return bench.workload.run()
        finally:
            for tensor, original in zip(narrow, originals, strict=True):
                tensor.data = original
            bench.snapshot.restore()


def _outputs(output: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.numel():
            found.append(tensor.detach().to("cpu", copy=True))
        return tensor

    logits = getattr(output, "logits", None)
    tree_map_only(torch.Tensor, collect, logits if isinstance(logits, torch.Tensor) else output)
    return found


def _error(own: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Relative L2 error over all output tensors together."""
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(own, reference, strict=True))
    norm = sum(float(b.double().square().sum()) for b in reference)
    return float((difference / norm) ** 0.5) if norm else float(difference**0.5)
