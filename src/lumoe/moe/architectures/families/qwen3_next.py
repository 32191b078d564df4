"""Qwen3-Next and Qwen3.5-MoE: Gated DeltaNet in most layers, attention with a gated output in the others."""

from __future__ import annotations

from typing import Any

from lumoe.errors import UserError
from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Delta, Router
from lumoe.moe.architectures.common import rotary, sizes, sparse_layers
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import QWEN, Part, network

MODEL_TYPES = ("qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text")
ABOUT = (
    About(
        "Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
        "qwen3-next-80b-a3b",
        kinds=("qwen3_next",),
        calls="<tool_call>",
        held_to=("transformers", "llama.cpp"),
    ),
    # Router and attention are those of Qwen3-Next; projections lie in its files in another order.
    About(
        "Qwen3.5 35B-A3B, 397B-A17B",
        "qwen3-next-80b-a3b",
        kinds=("qwen3_5_moe", "qwen3_5_moe_text"),
        calls="<tool_call>",
        held_to=("transformers", "llama.cpp"),
    ),
)
NAMES = {
    **QWEN,
    **network("block_sparse_moe.shared", "mlp.shared_expert"),
    "block_sparse_moe.shared.gate.weight": (Part("mlp.shared_expert_gate.weight"),),
}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    if config.find("text_config") is not None:
        # A model that sees images: its language model is served, and images are refused.
        config.ignore("vision_config", "image_token_id", "video_token_id", "vision_start_token_id")
        config.ignore("vision_end_token_id", "language_model_only")
        tied = config.get("tie_word_embeddings", False)
        text = config.inner("text_config")
        found = {**settings(text), "tie_word_embeddings": text.get("tie_word_embeddings", tied)}
        text.check_nothing_left()
        return found
    first = config.need("model_type") == "qwen3_next"
    layers, every = config.need("num_hidden_layers"), config.get("full_attention_interval", 4)
    usual = ["full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(layers)]
    kinds = config.get("layer_types", usual)
    if len(kinds) != layers or not {"full_attention", "linear_attention"}.issuperset(kinds):
        raise UserError(f"{config.path}: 'layer_types' must name full_attention or linear_attention for each layer")
    config.expect("attn_output_gate", True)
    config.expect("mamba_ssm_dtype", "float32")
    config.ignore("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "intermediate_size")
    bias = config.get("attention_bias", False)
    # What GGUF files say of themselves: of Qwen3.5's they have the value heads in another order.
    layout = config.get("linear_layout", "interleaved" if first else "grouped")
    delta = Delta(
        key_heads=config.get("linear_num_key_heads", 16),
        value_heads=config.get("linear_num_value_heads", 32),
        key=config.get("linear_key_head_dim", 128),
        value=config.get("linear_value_head_dim", 128),
        convolution=config.get("linear_conv_kernel_dim", 4),
        interleaved=layout == "interleaved",
        tiled=layout == "tiled",
    )
    return {
        **sizes(config),
        "head_dim": config.get("head_dim", 256),
        **(sparse_layers(config) if first else {}),
        "num_local_experts": config.need("num_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("moe_intermediate_size"),
        "shared_size": config.need("shared_expert_intermediate_size"),
        "shared_gate": True,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "norm_offset": config.get("norm_offset", 1.0),
        "rotary": rotary(config, 1e4, partial=0.25),
        "router": Router(normalize=config.get("norm_topk_prob", True) if first else True),
        "attention": Attention(norm="head", qkv_bias=bias, output_bias=bias, output_gate=True),
        "delta": delta,
        "delta_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == "linear_attention"),
    }
