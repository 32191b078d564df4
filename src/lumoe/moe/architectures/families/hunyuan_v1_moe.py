"""Hunyuan-A13B: queries and keys are normalised after they are turned; a network beside the experts."""

from __future__ import annotations

from typing import Any

from lumoe.errors import UserError
from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN, Part, network

MODEL_TYPES = ("hunyuan_v1_moe",)
ABOUT = (About("Hunyuan-A13B", "hunyuan-a13b", calls="<tool_calls>", held_to=("transformers", "llama.cpp")),)
NAMES = {
    **QWEN,
    **network("block_sparse_moe.shared", "mlp.shared_mlp"),
    "block_sparse_moe.gate.weight": (Part("mlp.gate.wg.weight"),),
    "self_attn.q_norm.weight": (Part("self_attn.query_layernorm.weight"),),
    "self_attn.k_norm.weight": (Part("self_attn.key_layernorm.weight"),),
}
OWN_CODE = True


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    bias = config.get("attention_bias", False)
    config.expect("use_qk_norm", True)
    config.expect("use_mixed_mlp_moe", True)
    config.expect("use_cla", False)
    config.expect("mlp_bias", False)
    config.expect("norm_type", "rms")
    config.expect("position_embedding_xdrope", False)
    # Of training, of other models in one family of files, or said again under names below.
    config.ignore("attention_head_dim", "cla_share_factor", "moe_drop_tokens", "moe_random_routing_dropped_token")
    config.ignore("moe_layer_num_skipped", "org_vocab_size", "group_limited_greedy", "eod_token_id", "mask_init_id")
    config.ignore("add_classification_head", "class_num", "pool_type", "rope_theta_scaling", "use_rotary_pos_emb")
    width = config.need("intermediate_size")
    return {
        **sizes(config),
        "num_local_experts": alike(config, "num_experts"),
        "num_experts_per_tok": alike(config, "moe_topk"),
        "intermediate_size": alike(config, "moe_intermediate_size") or width,
        "shared_size": width * (alike(config, "num_shared_expert") or 1),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 1e4),
        "router": Router(float32=True),
        "attention": Attention(qkv_bias=bias, output_bias=bias, norm="head", norm_after=True),
    }


def alike(config: Config, key: str) -> Any:
    """Return a number that may stand for each layer; all layers must have the same.

    Raises:
        UserError: they have not.
    """
    value = config.find(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise UserError(f"{config.path}: '{key}' differs between layers, which is not supported")
        return value[0]
    return value
