"""Tiny random-weight transformers models, and the steps tests run on them.  Real CPU tensors, no download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import transformers

VOCABULARY = 64
MAX_LENGTH = 32

# The default token ids lie outside the tiny vocabulary, and a pad id makes some models read their input back.
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_SIZES: dict[str, Any] = _NO_TOKENS | {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
}
_LLAMA_LIKE = _SIZES | {"num_key_value_heads": 2}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}

# name -> (config class, model class, config arguments)
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        _NO_TOKENS | {"vocab_size": VOCABULARY, "n_positions": MAX_LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 4},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA_LIKE),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _LLAMA_LIKE | {"head_dim": 8}),
    # sliding_window below the sequence length, so that the local-attention layers really mask
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _LLAMA_LIKE | {"head_dim": 8, "sliding_window": 4}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", _LLAMA_LIKE | _MOE),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        _LLAMA_LIKE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        _LLAMA_LIKE | _MOE | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "bert": ("BertConfig", "BertModel", _SIZES),
}
MODELS = tuple(_MODELS)
MOE_MODELS = ("olmoe", "mixtral", "qwen2_moe")
ENCODERS = ("bert",)

Call = Callable[[], Any]


def build(
    name: str,
    *,
    experts_implementation: str | None = None,
    attn_implementation: str | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> torch.nn.Module:
    """A tiny eval-mode model of architecture ``name`` (one of ``MODELS``) with seeded random weights."""
    config_class, model_class, sizes = _MODELS[name]
    config = getattr(transformers, config_class)(**sizes)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    if experts_implementation is not None:
        config._experts_implementation = experts_implementation
    torch.manual_seed(seed)
    module: torch.nn.Module = getattr(transformers, model_class)(config).to(dtype).eval()
    return module


def steps(
    module: torch.nn.Module, *, cache: Literal["static", "dynamic"] = "static", batch: int = 2, seq_len: int = 6
) -> Iterator[tuple[str, Call]]:
    """``("prefill", call)`` then ``("decode", call)`` of a causal LM, or one ``("forward", call)`` of an encoder.

    Each call runs once: the decode step continues the cache that the prefill filled, so run them in order.
    """
    tokens = torch.arange(batch * seq_len).reshape(batch, seq_len) % VOCABULARY
    config: Any = module.config
    if config.model_type in ENCODERS:
        yield "forward", lambda: module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return
    past: Any = (
        transformers.StaticCache(config=config, max_cache_len=MAX_LENGTH)
        if cache == "static"
        else transformers.DynamicCache(config=config)
    )
    yield "prefill", lambda: module(input_ids=tokens, past_key_values=past, use_cache=True)
    position = torch.full((batch, 1), seq_len)
    yield (
        "decode",
        lambda: module(input_ids=tokens[:, :1], past_key_values=past, position_ids=position, use_cache=True),
    )
