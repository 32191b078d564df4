"""Phi-3.5-MoE (arXiv 2404.14219): layer norms with biases, sparsemixer in place of a softmax of all experts."""

from __future__ import annotations

from typing import Any

from lumoe.errors import UserError
from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import MIXTRAL

MODEL_TYPES = ("phimoe",)
ABOUT = (About("Phi-3.5-MoE", "phi-3.5-moe", held_to=("transformers",)),)
NAMES = MIXTRAL


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    bias = config.get("attention_bias", False)
    if config.need("num_experts_per_tok") != 2:
        raise UserError(f"{config.path}: 'num_experts_per_tok' must be 2: sparsemixer chooses two experts")
    return {
        **sizes(config),
        "num_local_experts": config.need("num_local_experts"),
        "num_experts_per_tok": 2,
        "intermediate_size": config.need("intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "norm": "layer",
        "head_bias": config.get("lm_head_bias", False),
        "rotary": rotary(config, 1e6),
        "router": Router(score="sparsemixer", threshold=2 * config.get("router_jitter_noise", 0.01)),
        "attention": Attention(qkv_bias=bias, output_bias=bias),
        "sliding_window": config.find("sliding_window"),
    }
