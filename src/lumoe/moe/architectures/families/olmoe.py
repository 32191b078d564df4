"""OLMoE (arXiv 2409.02060): queries and keys are normalised over all heads together."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN

MODEL_TYPES = ("olmoe",)
ABOUT = (About("OLMoE-1B-7B", "olmoe-1b-7b", held_to=("transformers", "llama.cpp")),)
NAMES = QWEN


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    bias = config.get("attention_bias", False)
    return {
        **sizes(config),
        "num_local_experts": config.need("num_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 1e4),
        "router": Router(normalize=config.get("norm_topk_prob", False)),
        "attention": Attention(norm="full", qkv_bias=bias, output_bias=bias, clip=config.find("clip_qkv")),
    }
