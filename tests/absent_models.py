"""Decode steps whose launches under Inductor were counted on an H200, as factories for ``--model file.py:name``."""

from __future__ import annotations

from typing import Any

import torch
import transformers

CONTEXT = 32  # tokens in the cache
_SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _decode(config: Any, heads: int, device: str, dtype: torch.dtype) -> tuple[Any, tuple[()], dict[str, Any]]:
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    cache = transformers.DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        kept = torch.zeros(1, heads, CONTEXT, 64, dtype=dtype, device=device)
        cache.update(kept, torch.zeros_like(kept), layer)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    return model, (), {"input_ids": token, "past_key_values": cache, "use_cache": True}


def gpt2(device: str, dtype: torch.dtype) -> Any:
    return _decode(transformers.GPT2Config(**_SIZES, n_positions=256), 8, device, dtype)


def llama(device: str, dtype: torch.dtype) -> Any:
    sizes = _SIZES | {"intermediate_size": 1024, "num_key_value_heads": 2, "head_dim": 64}
    return _decode(transformers.LlamaConfig(**sizes), 2, device, dtype)


def olmoe(device: str, dtype: torch.dtype) -> Any:
    sizes = _SIZES | {"intermediate_size": 256, "num_key_value_heads": 8, "num_experts": 8, "num_experts_per_tok": 2}
    return _decode(transformers.OlmoeConfig(**sizes), 8, device, dtype)
