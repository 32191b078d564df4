"""Qwen2-MoE (arXiv 2407.10671): a gated network beside the experts, which every token passes."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes, sparse_layers, windows
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN, Part, network

MODEL_TYPES = ("qwen2_moe",)
ABOUT = (About("Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "qwen1.5-moe-a2.7b", held_to=("transformers", "llama.cpp")),)
NAMES = {
    **QWEN,
    **network("block_sparse_moe.shared", "mlp.shared_expert"),
    "block_sparse_moe.shared.gate.weight": (Part("mlp.shared_expert_gate.weight"),),
}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    window = config.find("sliding_window") if config.get("use_sliding_window", False) else None
    # Version 5 of transformers says of each layer whether it has the window; before, all had it.
    named = windows(config, None) if config.find("layer_types") else {"sliding_window": window}
    config.ignore("sliding_window", "max_window_layers", "intermediate_size")
    return {
        **sizes(config),
        **sparse_layers(config),
        "num_local_experts": config.need("num_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("moe_intermediate_size"),
        "shared_size": config.need("shared_expert_intermediate_size"),
        "shared_gate": True,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary(config, 1e4),
        "router": Router(normalize=config.get("norm_topk_prob", False)),
        "attention": Attention(qkv_bias=config.get("qkv_bias", True)),
        **named,
    }
