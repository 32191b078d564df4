"""dots.llm1 (arXiv 2506.05767): GLM-4.5's router, queries and keys normalised, windows in the last layers."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention
from lumoe.moe.architectures.common import grouped_experts, rotary, sizes, windows
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import DEEPSEEK

MODEL_TYPES = ("dots1",)
ABOUT = (About("dots.llm1", "dots.llm1", held_to=("transformers", "llama.cpp")),)
NAMES = DEEPSEEK


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    bias = config.get("attention_bias", False)
    config.expect("scoring_func", "noaux_tc", "sigmoid")  # the published files have the name of the choice here
    config.expect("moe_layer_freq", 1)
    layers = config.need("num_hidden_layers")
    first = config.get("max_window_layers", 62)
    first = first if config.find("sliding_window") else layers
    kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    return {
        **sizes(config),
        **grouped_experts(config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary(config, 1e4),
        "attention": Attention(qkv_bias=bias, output_bias=bias, norm="head"),
        **windows(config, None, kinds),
    }
