"""BERT-base on prompts without padding, whose attention gets no mask, traced or not (docs/tutorial.md).

taxbreak review docs/examples/bert_unmasked.py:step
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AutoModel, BertConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# The same attention under a name for which transformers knows no mask: it builds none, and padding goes unmasked.
AttentionInterface.register("sdpa_unmasked", sdpa_attention_forward)


def step(device: str, dtype: torch.dtype, batch: int, seq_len: int) -> tuple[Any, tuple[()], dict[str, Any]]:
    """Token ids (batch, seq_len) into a randomly initialised BERT-base."""
    config = BertConfig()
    model = AutoModel.from_config(config, attn_implementation="sdpa_unmasked", dtype=dtype).to(device).eval()
    return model, (), {"input_ids": torch.randint(config.vocab_size, (batch, seq_len), device=device)}
