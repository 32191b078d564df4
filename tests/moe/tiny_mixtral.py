"""A random Mixtral, small and sharded like a large one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # Wide weights: outputs far from uniform, so that a wrong expert or position shows.
    "initializer_range": 0.15,
}


def make_model(folder: Path, dtype: torch.dtype, **changes: object) -> Path:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**{**TINY, **changes}))
    model.to(dtype).save_pretrained(folder, max_shard_size="300KB")
    return folder
