"""The models that ``taxbreak`` builds by name: released configurations and tiny siblings, as plain data.

Nothing here imports torch or transformers, so ``taxbreak models`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class ModelEntry:
    """A registry row.  ``parameters`` is exact for ``config`` (tests/test_models.py builds each one on meta).

    ``config`` holds the arguments of transformers' ``config_class``; weights are random.
    """

    name: str
    layers: int
    hidden: int
    parameters: int
    params_description: str
    config_class: str
    config: Mapping[str, Any]


# No special tokens: with a pad token id, some models look for it in the input on every eager call, which reads a value
# back from the device in the middle of the step.
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _gpt2(name: str, parameters: int, *, layers: int, hidden: int, heads: int, vocab: int) -> ModelEntry:
    config = {
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "vocab_size": vocab,
        "n_positions": 1024,
        "tie_word_embeddings": True,
    }
    return _entry(name, "GPT2Config", parameters, layers, hidden, f"MLP {4 * hidden}, {heads} heads, tied", config)


def _sizes(layers: int, hidden: int, intermediate: int, heads: int, **more: Any) -> dict[str, Any]:
    """The names that BERT, ViT and Gemma give their sizes."""
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate}
    return {**sizes, "num_attention_heads": heads, **more}


def _t5_sizes(layers: int, hidden: int, intermediate: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"num_layers": layers, "d_model": hidden, "d_ff": intermediate, "num_heads": heads, **more}


def _whisper_sizes(layers: int, hidden: int, intermediate: int, heads: int, **more: Any) -> dict[str, Any]:
    own = {"layers": layers, "ffn_dim": intermediate, "attention_heads": heads}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in own.items()}
    return {**both, "d_model": hidden, **more}


def _decoder(
    name: str,
    config_class: str,
    parameters: int,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    tied: bool,
    positions: int,
    rope: dict[str, Any],
    eps: float,
    head_dim: int | None = None,
    moe: dict[str, Any] | None = None,
    experts: str = "",
) -> ModelEntry:
    """A Llama-shaped decoder; ``head_dim`` is given only where it is not ``hidden / heads``."""
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
        "rope_parameters": rope,
        "rms_norm_eps": eps,
        **({} if head_dim is None else {"head_dim": head_dim}),
        **(moe or {}),
    }
    detail = f"{experts or f'MLP {intermediate}'}, {heads}/{kv_heads} heads" + (", tied" if tied else "")
    return _entry(name, config_class, parameters, layers, hidden, detail, config)


def _entry(
    name: str, config_class: str, parameters: int, layers: int, hidden: int, detail: str, config: dict[str, Any]
) -> ModelEntry:
    return ModelEntry(
        name=name,
        layers=layers,
        hidden=hidden,
        parameters=parameters,
        params_description=f"{_count(parameters)} parameters: {detail}",
        config_class=config_class,
        config=MappingProxyType({**_NO_TOKENS, **config}),
    )


def _count(parameters: int) -> str:
    """``1.236 B``, ``124.4 M`` or ``112.3 k``: four significant digits at most."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if parameters >= size:
            return f"{parameters / size:.4g} {unit}"
    return f"{parameters / 1e3:.4g} k"


_QWEN: dict[str, Any] = {"vocab": 151_936, "rope": _rope(1e6), "eps": 1e-6}
_TINY: dict[str, Any] = {"layers": 2, "hidden": 64, "heads": 4, "vocab": 256}
_TINY_DECODER: dict[str, Any] = {**_TINY, "kv_heads": 2, "intermediate": 128, "positions": 1024}
_LLAMA: dict[str, Any] = {"vocab": 128_256, "positions": 131_072, "eps": 1e-5}

# One line per released model.  Where a transformers default differs from the release, the release's value stands here:
# OLMoE's experts are 1024 wide (default 2048), Qwen3-30B-A3B has 48 layers and normalizes its top-k weights.
_ENTRIES = (
    _gpt2("gpt2", 124_439_808, layers=12, hidden=768, heads=12, vocab=50_257),
    _decoder(
        "Llama-3.2-1B",
        "LlamaConfig",
        1_235_814_400,
        layers=16,
        hidden=2048,
        intermediate=8192,
        heads=32,
        kv_heads=8,
        tied=True,
        rope=_llama3_rope(32.0),
        **_LLAMA,
    ),
    _decoder(
        "Llama-3.2-3B",
        "LlamaConfig",
        3_212_749_824,
        layers=28,
        hidden=3072,
        intermediate=8192,
        heads=24,
        kv_heads=8,
        tied=True,
        rope=_llama3_rope(32.0),
        **_LLAMA,
    ),
    _decoder(
        "Llama-3.1-8B",
        "LlamaConfig",
        8_030_261_248,
        layers=32,
        hidden=4096,
        intermediate=14_336,
        heads=32,
        kv_heads=8,
        tied=False,
        rope=_llama3_rope(8.0),
        **_LLAMA,
    ),
    _decoder(
        "Qwen2.5-0.5B",
        "Qwen2Config",
        494_032_768,
        layers=24,
        hidden=896,
        intermediate=4864,
        heads=14,
        kv_heads=2,
        tied=True,
        positions=32_768,
        **_QWEN,
    ),
    _decoder(
        "Qwen3-0.6B",
        "Qwen3Config",
        596_049_920,
        layers=28,
        hidden=1024,
        intermediate=3072,
        heads=16,
        kv_heads=8,
        head_dim=128,
        tied=True,
        positions=40_960,
        **_QWEN,
    ),
    _decoder(
        "Qwen3-8B",
        "Qwen3Config",
        8_190_735_360,
        layers=36,
        hidden=4096,
        intermediate=12_288,
        heads=32,
        kv_heads=8,
        head_dim=128,
        tied=False,
        positions=40_960,
        **_QWEN,
    ),
    _decoder(
        "OLMoE-1B-7B",
        "OlmoeConfig",
        6_919_161_856,
        layers=16,
        hidden=2048,
        intermediate=1024,
        heads=16,
        kv_heads=16,
        vocab=50_304,
        tied=False,
        positions=4096,
        rope=_rope(1e4),
        eps=1e-5,
        experts="64 experts of 1024, top-8",
        moe={"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    ),
    _decoder(
        "Qwen1.5-MoE-A2.7B",
        "Qwen2MoeConfig",
        14_315_784_192,
        layers=24,
        hidden=2048,
        intermediate=5632,
        heads=16,
        kv_heads=16,
        tied=False,
        positions=8192,
        **_QWEN,
        experts="60 experts of 1408, top-4, shared 5632",
        moe={
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "norm_topk_prob": False,
        },
    ),
    _decoder(
        "Qwen3-30B-A3B",
        "Qwen3MoeConfig",
        30_532_122_624,
        layers=48,
        hidden=2048,
        intermediate=6144,
        heads=32,
        kv_heads=4,
        head_dim=128,
        tied=False,
        positions=40_960,
        **_QWEN,
        experts="128 experts of 768, top-8",
        moe={
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
        },
    ),
    _decoder(
        "Mixtral-8x7B",
        "MixtralConfig",
        46_702_792_704,
        layers=32,
        hidden=4096,
        intermediate=14_336,
        heads=32,
        kv_heads=8,
        vocab=32_000,
        tied=False,
        positions=32_768,
        rope=_rope(1e6),
        eps=1e-5,
        experts="8 experts of 14336, top-2",
        moe={"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    _entry("Gemma-2-2B", "Gemma2Config", 2_614_341_888, 26, 2304, "MLP 9216, 8/4 heads, sliding window 4096, tied",
           _sizes(26, 2304, 9216, 8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
                  vocab_size=256_000, max_position_embeddings=8192, sliding_window=4096)),
    _entry("Mamba-130M", "MambaConfig", 129_135_360, 24, 768, "state space, state 16, tied",
           {"num_hidden_layers": 24, "hidden_size": 768, "state_size": 16, "time_step_rank": 48,
            "vocab_size": 50_280, "tie_word_embeddings": True}),
    _entry("BERT-base", "BertConfig", 109_482_240, 12, 768, "encoder, MLP 3072, 12 heads",
           _sizes(12, 768, 3072, 12, vocab_size=30_522, max_position_embeddings=512)),
    _entry("ViT-base", "ViTConfig", 86_389_248, 12, 768, "encoder of 224x224 images, patch 16, MLP 3072, 12 heads",
           _sizes(12, 768, 3072, 12, image_size=224, patch_size=16)),
    _entry("T5-small", "T5Config", 60_506_624, 6, 512, "encoder and decoder, MLP 2048, 8 heads, tied",
           _t5_sizes(6, 512, 2048, 8, d_kv=64, vocab_size=32_128)),
    _entry("Whisper-base", "WhisperConfig", 72_593_920, 6, 512, "audio encoder and decoder, MLP 2048, 8 heads, tied",
           _whisper_sizes(6, 512, 2048, 8, vocab_size=51_865, num_mel_bins=80, max_source_positions=1500,
                          max_target_positions=448)),
    _gpt2("gpt2-tiny", 182_016, **_TINY),
    _decoder("llama-tiny", "LlamaConfig", 90_432, tied=True, rope=_rope(1e4), eps=1e-5, **_TINY_DECODER),
    _decoder("qwen3-tiny", "Qwen3Config", 115_136, head_dim=32, tied=True, rope=_rope(1e6), eps=1e-6, **_TINY_DECODER),
    _decoder(
        "olmoe-tiny",
        "OlmoeConfig",
        452_096,
        tied=False,
        rope=_rope(1e4),
        eps=1e-5,
        experts="8 experts of 128, top-2",
        moe={"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False},
        **_TINY_DECODER,
    ),
    _entry("gemma2-tiny", "Gemma2Config", 90_688, 2, 64, "MLP 128, 4/2 heads, sliding window 8, tied",
           _sizes(2, 64, 128, 4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, vocab_size=256,
                  max_position_embeddings=1024, sliding_window=8)),
    _entry("mamba-tiny", "MambaConfig", 75_712, 2, 64, "state space, state 8, tied",
           {"num_hidden_layers": 2, "hidden_size": 64, "state_size": 8, "time_step_rank": 4, "vocab_size": 256,
            "tie_word_embeddings": True}),
    _entry("bert-tiny", "BertConfig", 153_280, 2, 64, "encoder, MLP 128, 4 heads",
           _sizes(2, 64, 128, 4, vocab_size=256, max_position_embeddings=1024)),
    _entry("vit-tiny", "ViTConfig", 84_736, 2, 64, "encoder of 32x32 images, patch 8, MLP 128, 4 heads",
           _sizes(2, 64, 128, 4, image_size=32, patch_size=8)),
    _entry("t5-tiny", "T5Config", 181_248, 2, 64, "encoder and decoder, MLP 128, 4 heads, tied",
           _t5_sizes(2, 64, 128, 4, d_kv=16, vocab_size=256)),
    _entry("whisper-tiny", "WhisperConfig", 267_904, 2, 64, "audio encoder and decoder, MLP 128, 4 heads, tied",
           _whisper_sizes(2, 64, 128, 4, vocab_size=256, num_mel_bins=16, max_source_positions=50,
                          max_target_positions=1024)),
)  # fmt: skip


def registry() -> list[ModelEntry]:
    """Every model that has a name here: the released ones by family and size, then the tiny siblings."""
    return list(_ENTRIES)


def find(name: str) -> ModelEntry | None:
    """The entry of that name, whatever its capitals, or None."""
    folded = name.casefold()
    return next((entry for entry in _ENTRIES if entry.name.casefold() == folded), None)
