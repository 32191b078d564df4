"""Granite MoE, with a network beside the experts or not: four factors, and experts stacked in two tensors."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import Part, fused

MODEL_TYPES = ("granitemoe", "granitemoeshared")
ABOUT = (
    About(
        "Granite 3.0 and 3.1, 1B-A400M and 3B-A800M",
        "granite-3.0-1b-a400m",
        calls="<|tool_call|>",
        held_to=("transformers", "llama.cpp"),
    ),
)
_SHARED = "block_sparse_moe.shared"
NAMES = {
    "block_sparse_moe.gate.weight": (Part("block_sparse_moe.router.layer.weight"),),
    **fused("block_sparse_moe", "input_linear.weight", "output_linear.weight"),
    f"{_SHARED}.w1.weight": (Part("shared_mlp.input_linear.weight", half=0),),
    f"{_SHARED}.w2.weight": (Part("shared_mlp.output_linear.weight"),),
    f"{_SHARED}.w3.weight": (Part("shared_mlp.input_linear.weight", half=1),),
}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    bias = config.get("attention_bias", False)
    config.expect("position_embedding_type", "rope")
    return {
        **sizes(config),
        "num_local_experts": config.need("num_local_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("intermediate_size"),
        "shared_size": config.get("shared_intermediate_size", 0),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary(config, 1e4),
        "attention": Attention(qkv_bias=bias, output_bias=bias, scale=config.get("attention_multiplier", 1.0)),
        "embedding_scale": config.get("embedding_multiplier", 1.0),
        "residual_scale": config.get("residual_multiplier", 1.0),
        "logits_divisor": config.get("logits_scaling", 1.0),
    }
