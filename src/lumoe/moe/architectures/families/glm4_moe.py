"""GLM-4.5 (arXiv 2508.06471): sigmoid scores with a correction, half of each head turned."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention
from lumoe.moe.architectures.common import grouped_experts, rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import DEEPSEEK

MODEL_TYPES = ("glm4_moe",)
ABOUT = (
    About("GLM-4.5, GLM-4.5-Air, GLM-4.6", "glm-4.5-air", calls="<tool_call>", held_to=("transformers", "llama.cpp")),
)
NAMES = DEEPSEEK


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    return {
        **sizes(config),
        **grouped_experts(config),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 1e4, partial=0.5),
        "attention": Attention(
            qkv_bias=config.get("attention_bias", False), norm="head" if config.get("use_qk_norm", False) else None
        ),
    }
