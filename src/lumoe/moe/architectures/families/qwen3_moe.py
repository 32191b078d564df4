"""Qwen3-MoE (arXiv 2505.09388): queries and keys are normalised head by head."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes, sparse_layers
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN

MODEL_TYPES = ("qwen3_moe",)
ABOUT = (
    About(
        "Qwen3 30B-A3B, 235B-A22B, Qwen3-Coder",
        "qwen3-30b-a3b",
        calls="<tool_call>",
        held_to=("transformers", "llama.cpp"),
    ),
)
NAMES = QWEN


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    window = config.find("sliding_window") if config.get("use_sliding_window", False) else None
    config.ignore("sliding_window", "max_window_layers", "intermediate_size")
    bias = config.get("attention_bias", False)
    return {
        **sizes(config),
        **sparse_layers(config),
        "num_local_experts": config.need("num_experts", "num_local_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("moe_intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary(config, 1e4),
        "router": Router(normalize=config.get("norm_topk_prob", False)),
        "attention": Attention(norm="head", qkv_bias=bias, output_bias=bias),
        "sliding_window": window,
    }
