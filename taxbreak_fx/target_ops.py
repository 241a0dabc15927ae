"""Calls that torch takes apart otherwise on fake tensors than on the GPU they stand for, taken apart as on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from taxbreak_fx.sdpa_policy import SDPA, attend


def one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """``one_hot`` by zeros and a scatter; for tensors without content torch compares with a range instead.

    Seen on an H200 (torch 2.11.0+cu130): two kernels a call in OLMoE with eager experts.
    """
    aten = torch.ops.aten
    classes = num_classes if num_classes != -1 else int(aten.max.default(tensor).item()) + 1
    made = aten.zeros.default([*tensor.shape, classes], dtype=tensor.dtype, device=tensor.device)
    hot: torch.Tensor = aten.scatter_.value(made, -1, aten.unsqueeze.default(tensor, -1), 1)
    return hot


ON_TARGET: dict[Any, Callable[..., torch.Tensor]] = {SDPA: attend, torch.nn.functional.one_hot: one_hot}


class TargetOps(TorchFunctionMode):
    """Inside, the calls of ``ON_TARGET`` issue the ops that they issue on the target."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return ON_TARGET.get(func, func)(*args, **(kwargs or {}))
