"""Aria's language model (arXiv 2410.05993): experts stacked in two tensors, a network beside them."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import Part, fused, network

MODEL_TYPES = ("aria", "aria_text")
ABOUT = (About("Aria (25B-A4B, text)", "aria", held_to=("transformers",)),)
NAMES = {
    "block_sparse_moe.gate.weight": (Part("mlp.router.weight"),),
    **fused("mlp.experts", "fc1.weight", "fc2.weight", transposed=True),
    **network("block_sparse_moe.shared", "mlp.shared_experts"),
    "lm_head.weight": (Part("lm_head.weight"), Part("language_model.lm_head.weight")),
}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    if config.find("text_config") is not None:
        # A model that sees images: its language model is served, and images are refused.
        config.ignore("vision_config", "image_token_index", "image_token_id", "vision_feature_layer")
        config.ignore("projector_patch_to_query_dict", "max_value_projector_patch_to_query_dict")
        text = config.inner("text_config")
        found = {**settings(text), "tie_word_embeddings": text.get("tie_word_embeddings", False)}
        text.check_nothing_left()
        return found
    config.expect("mlp_bias", False)
    config.ignore("moe_aux_loss_coeff", "moe_z_loss_coeff")  # of training
    bias, width = config.get("attention_bias", False), config.need("intermediate_size")
    return {
        **sizes(config),
        "num_local_experts": config.need("moe_num_experts"),
        "num_experts_per_tok": config.get("moe_topk", 2),
        "intermediate_size": width,
        "shared_size": width * config.get("moe_num_shared_experts", 2),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": rotary(config, 1e4),
        "attention": Attention(qkv_bias=bias, output_bias=bias),
    }
