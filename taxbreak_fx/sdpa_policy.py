"""Which backend ``scaled_dot_product_attention`` takes on a Hopper GPU, as data, and the ops that backend then issues.

torch asks the driver for the GPU before it chooses; where there is none it takes the math backend, on no Hopper the
right answer.  The rules are those of torch's ``select_sdp_backend`` (aten/src/ATen/native/transformers/cuda/
sdp_utils.cpp, torch 2.11) for compute capability 9.0 and cuDNN above 9.15, which put cuDNN first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
SDPA = torch.nn.functional.scaled_dot_product_attention
SDPA_OP = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Attention:
    """The arguments of one call, under the names of torch's own signature."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def saves_lse(self) -> bool:
        """Whether a backward pass will need the log-sum-exp."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)


@dataclass(frozen=True)
class Backend:
    """A backend, when it takes a call, how it issues it, and where the condition was seen."""

    name: str
    takes: Callable[[Attention], bool]
    issue: Callable[[Attention], torch.Tensor]
    condition: str
    source: str


def _fused(call: Attention) -> bool:
    """What every fused backend asks: four dimensions, some sequence to attend to, elements of a row side by side.

    A mask that is one value expanded has no such rows: transformers makes it when it traces a model without padding.
    """
    shaped = all(t.dim() == 4 and t.shape[2] > 0 and (t.stride(3) == 1 or t.shape[3] == 1) for t in call.tensors)
    return shaped and (call.attn_mask is None or call.attn_mask.stride(-1) == 1)


def _head_dims(call: Attention, most: int, multiple: int) -> bool:
    return all(tensor.shape[3] <= most and tensor.shape[3] % multiple == 0 for tensor in call.tensors)


def _cudnn_takes(call: Attention) -> bool:
    return (
        _fused(call)
        and call.query.dtype in HALF
        and _head_dims(call, 128, 8)
        and call.key.shape[2] != 1
        and not (call.dropout_p and call.query.shape[2] == 1)
        and (call.attn_mask is None or (call.attn_mask.dim() in (2, 4) and not call.attn_mask.requires_grad))
    )


def _flash_takes(call: Attention) -> bool:
    return (
        _fused(call)
        and call.query.dtype in HALF
        and call.attn_mask is None
        and call.query.shape[3] == call.key.shape[3] == call.value.shape[3] <= 256
        and (not call.is_causal or call.query.shape[2] == call.key.shape[2])
    )


def _efficient_takes(call: Attention) -> bool:
    dtype = call.query.dtype
    multiple = 8 if dtype in HALF else 4
    return (
        _fused(call)
        and dtype in (*HALF, torch.float32)
        and call.query.shape[1] == call.key.shape[1] == call.value.shape[1]
        and call.query.shape[3] == call.key.shape[3]
        and call.query.shape[3] % multiple == 0 == call.value.shape[3] % multiple
    )


def _additive(mask: torch.Tensor | None, dtype: torch.dtype, masked: float) -> torch.Tensor | None:
    """A boolean mask as what is added to the scores, by the three ops that torch uses."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    unmasked = aten.scalar_tensor.default(0.0, dtype=dtype, device=mask.device)
    hidden = aten.scalar_tensor.default(masked, dtype=dtype, device=mask.device)
    added: torch.Tensor = aten.where.self(mask, unmasked, hidden)
    return added


def _cudnn(call: Attention) -> torch.Tensor:
    mask = _additive(call.attn_mask, call.query.dtype, -65504.0)  # torch keeps infinities from cuDNN
    options = {} if call.scale is None else {"scale": call.scale}
    result = aten._scaled_dot_product_cudnn_attention.default(
        *call.tensors, mask, call.saves_lse, call.dropout_p, call.is_causal, **options
    )
    output: torch.Tensor = result[0]
    return output


def _flash(call: Attention) -> torch.Tensor:
    width = call.query.shape[3]
    scale = width**-0.5 if call.scale is None else call.scale
    short = -width % 8
    padded = [aten.constant_pad_nd.default(t, [0, short]) if short else t for t in call.tensors]
    output: torch.Tensor = aten._scaled_dot_product_flash_attention.default(
        *padded, call.dropout_p, call.is_causal, scale=scale
    )[0]
    return aten.slice.Tensor(output, -1, 0, width) if short else output


def _aligned(mask: torch.Tensor, call: Attention) -> torch.Tensor:
    """The mask for every head, its rows padded to where the kernel loads 16 elements at once."""
    shape = [*call.query.shape[:3], call.key.shape[2]]
    mask = aten.expand.default(mask, shape)
    short = -shape[3] % 16
    if short:
        return aten.slice.Tensor(aten.constant_pad_nd.default(mask, [0, short]), -1, 0, shape[3])  # type: ignore[no-any-return]
    if any(stride % 16 for stride in mask.stride()[:3]):
        return mask.contiguous()
    return mask


def _efficient(call: Attention) -> torch.Tensor:
    mask = _additive(call.attn_mask, call.query.dtype, -torch.inf)
    mask = None if mask is None else _aligned(mask, call)
    options = {} if call.scale is None else {"scale": call.scale}
    result = aten._scaled_dot_product_efficient_attention.default(
        *call.tensors, mask, call.saves_lse, call.dropout_p, call.is_causal, **options
    )
    output: torch.Tensor = result[0]
    return output


def _math(call: Attention) -> torch.Tensor:
    """torch's own choice where there is no driver: matmuls and a softmax."""
    arguments = {name: getattr(call, name) for name in Attention.__dataclass_fields__}
    return SDPA(**arguments)


SOURCE = "select_sdp_backend of torch 2.11"
POLICY = (
    Backend(
        "cudnn",
        _cudnn_takes,
        _cudnn,
        "fp16 or bf16, head sizes at most 128 and multiples of 8, more than one key, "
        "a mask of 2 or 4 dimensions whose rows lie side by side",
        f"{SOURCE}; seen on an H200 (torch 2.11.0+cu130): _scaled_dot_product_cudnn_attention in GPT-2, Llama, OLMoE, "
        "and in eager BERT and ViT",
    ),
    Backend(
        "flash",
        _flash_takes,
        _flash,
        "fp16 or bf16, no mask, one head size of at most 256, causal only where queries and keys are equally many",
        SOURCE,
    ),
    Backend(
        "efficient",
        _efficient_takes,
        _efficient,
        "fp32, fp16 or bf16, as many key heads as query heads, head sizes that are multiples of 16 bytes",
        f"{SOURCE}; seen on an H200 for fp32",
    ),
    Backend(
        "math",
        lambda call: True,
        _math,
        "everything else",
        f"{SOURCE}; seen on an H200 (torch 2.11.0+cu130) for the expanded masks of compiled BERT and ViT",
    ),
)


def choose(call: Attention) -> Backend:
    """The first backend of ``POLICY`` that takes the call."""
    return next(backend for backend in POLICY if backend.takes(call))


def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
    """``scaled_dot_product_attention`` on the target: the same arguments, the ops of the backend chosen there."""
    call = Attention(*args, **kwargs)
    return choose(call).issue(call)
