"""MiniMax-M2: Mixtral's names, sigmoid scores with a correction, queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Router
from lumoe.moe.architectures.common import rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import MIXTRAL, Part

MODEL_TYPES = ("minimax_m2",)
ABOUT = (About("MiniMax-M2", "minimax-m2", calls="<minimax:tool_call>", held_to=("transformers", "llama.cpp")),)
NAMES = {
    **MIXTRAL,
    "block_sparse_moe.gate.correction": (
        Part("block_sparse_moe.e_score_correction_bias"),
        Part("mlp.e_score_correction_bias"),
    ),
}
OWN_CODE = True


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    config.expect("scoring_func", "sigmoid")
    config.expect("use_routing_bias", True)
    config.expect("use_qk_norm", True)
    config.expect("qk_norm_type", "per_layer")
    config.expect("shared_intermediate_size", 0)
    kinds = config.find("attn_type_list")  # 1 is softmax attention, as all layers of this version have
    if kinds is not None and set(kinds) != {1}:
        config.expect("attn_type_list", [1] * config.need("num_hidden_layers"))
    # Tokens predicted ahead are not computed here; noise and the type of the head are of training.
    config.ignore("mtp_transformer_layers", "num_mtp_modules", "use_mtp", "router_jitter_noise")
    config.ignore("layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta")
    turned = rotary(config, 5e6, partial=1.0)
    width = config.find("rotary_dim")
    return {
        **sizes(config),
        "num_local_experts": config.need("num_local_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": turned if width is None else turned.model_copy(update={"width": width}),
        "router": Router(score="sigmoid", correction=True),
        "attention": Attention(norm="full"),
    }
