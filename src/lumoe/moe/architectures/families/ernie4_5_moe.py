"""ERNIE 4.5: a softmax whose correction chooses, neighbours that turn together."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Router
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN, Part, network

MODEL_TYPES = ("ernie4_5_moe",)
ABOUT = (
    About(
        "ERNIE-4.5 21B-A3B, 300B-A47B", "ernie-4.5-21b-a3b", calls="<tool_call>", held_to=("transformers", "llama.cpp")
    ),
)
NAMES = {
    **QWEN,
    **network("block_sparse_moe.shared", "mlp.shared_experts"),
    "block_sparse_moe.gate.correction": (Part("mlp.moe_statics.e_score_correction_bias", leading=True),),
}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    config.expect("use_bias", False)
    config.ignore("moe_capacity", "moe_use_aux_free", "use_rmsnorm", "num_nextn_predict_layers")  # of training
    config.expect("moe_gate", "topk")
    layers, width = config.need("num_hidden_layers"), config.need("moe_intermediate_size")
    first, last = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
    step, last = config.get("moe_layer_interval", 1), layers - 1 if last == -1 else last
    dense = tuple(layer for layer in range(layers) if (layer + 1) % step or not first <= layer <= last)
    return {
        **sizes(config),
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "num_local_experts": config.need("moe_num_experts"),
        "num_experts_per_tok": config.get("moe_k", 6),
        "intermediate_size": width,
        "dense_layers": dense,
        "dense_size": config.need("intermediate_size"),
        "shared_size": width * config.get("moe_num_shared_experts", 2),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 5e5, interleaved=True),
        "router": Router(correction=True, least_sum=config.get("moe_norm_min", 1e-12), float32=True),
    }
