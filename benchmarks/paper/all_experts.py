"""The experts of a mixture as they ran when the paper measured them: a loop over ALL experts, hit or not.

transformers 5 visits only the experts that a token chose, and multiplies gate and up in one product.  Before, each
expert was a module of three linear layers, and every one of them was called in every layer and step.  This is that
loop, on the weights of a transformers 5 model (nothing is copied), with equal outputs.

    taxbreak review benchmarks/paper/all_experts.py:olmoe_static --phase decode
    taxbreak review benchmarks/paper/all_experts.py:qwen_moe_dynamic --phase decode --batch 4 --seq-len 2048

(``--cache`` does not reach a factory: the name says which one a decode step has.)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from taxbreak_fx.models import load
from taxbreak_fx.request import ReviewRequest

__all__ = ["AllExperts", "olmoe_dynamic", "olmoe_static", "qwen_moe_dynamic", "qwen_moe_static", "with_all_experts"]


class Expert(nn.Module):
    """One expert: down(activation(gate(x)) · up(x)), x of shape (tokens, hidden)."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = (_linear(weight) for weight in (gate, up, down))
        self.activation = activation

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.activation(self.gate(tokens)) * self.up(tokens))
        return result


class AllExperts(nn.Module):
    """Drop-in for the ``experts`` module of a transformers MoE block with fused weights.

    ``forward`` takes hidden states (tokens, hidden), chosen experts and their weights (both tokens, top_k).
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        middle = fused.gate_up_proj.shape[1] // 2
        self.experts = nn.ModuleList(
            Expert(both[:middle], both[middle:], down, fused.act_fn)
            for both, down in zip(fused.gate_up_proj.detach(), fused.down_proj.detach(), strict=True)
        )

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(hidden)
        # (experts, top_k, tokens): which token chose which expert, and as which of its choices.
        mask = nn.functional.one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        for index, expert in enumerate(self.experts):
            rank, token = torch.where(mask[index])
            share = weights[token, rank, None]
            total.index_add_(0, token, (expert(hidden[token]) * share).to(total.dtype))
        return total


def _linear(weight: torch.Tensor) -> nn.Linear:
    """A linear layer on ``weight`` (out, in) itself."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def with_all_experts(model: nn.Module) -> nn.Module:
    """``model`` with every fused experts module replaced.  Raises ``ValueError`` when it has none."""
    blocks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "gate_up_proj") and hasattr(child, "down_proj") and hasattr(child, "num_experts")
    ]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no fused experts")
    for parent, name in blocks:
        setattr(parent, name, AllExperts(getattr(parent, name)))
    return model


def _factory(model: str, cache: Literal["static", "dynamic"]) -> Any:
    def made(
        device: str, dtype: torch.dtype, batch: int, seq_len: int, phase: Any, seed: int
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        request = ReviewRequest(
            model=model,
            phase=phase,
            batch=batch,
            seq_len=seq_len,
            cache=cache,
            dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
            experts_implementation="eager",
            seed=seed,
        )
        workload = load(request, device)
        with_all_experts(workload.call)  # type: ignore[arg-type]
        return workload.call, workload.args, dict(workload.kwargs)

    return made


olmoe_static = _factory("OLMoE-1B-7B", "static")
olmoe_dynamic = _factory("OLMoE-1B-7B", "dynamic")
qwen_moe_static = _factory("Qwen1.5-MoE-A2.7B", "static")
qwen_moe_dynamic = _factory("Qwen1.5-MoE-A2.7B", "dynamic")
