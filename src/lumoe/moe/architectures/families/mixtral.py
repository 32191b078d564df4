"""Mixtral (arXiv 2401.04088): the names that all others are brought to."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import MIXTRAL

MODEL_TYPES = ("mixtral",)
ABOUT = (About("Mixtral 8x7B, 8x22B", "mixtral-8x7b", calls="[TOOL_CALLS]", held_to=("transformers", "llama.cpp")),)
NAMES = MIXTRAL


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    config.ignore("router_jitter_noise")  # of training
    return {
        **sizes(config),
        "num_local_experts": config.need("num_local_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 1e6),
        "sliding_window": config.find("sliding_window"),
    }
