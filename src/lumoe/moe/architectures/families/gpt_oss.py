"""gpt-oss (arXiv 2508.10925): attention sinks, windows in every other layer, clamped and biased experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Activation, Attention, Router
from lumoe.moe.architectures.common import rotary, sizes, windows
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import Part, fused

MODEL_TYPES = ("gpt_oss",)
ABOUT = (About("gpt-oss-20b, gpt-oss-120b", "gpt-oss-20b", calls="<|channel|>", held_to=("transformers", "llama.cpp")),)
_EXPERTS = "block_sparse_moe.experts.{e}"
_GATE_UP = Part("mlp.experts.gate_up_proj_bias", stacked=True, half=0, interleaved=True)
NAMES = {
    "block_sparse_moe.gate.weight": (Part("mlp.router.weight"),),
    "block_sparse_moe.gate.bias": (Part("mlp.router.bias"),),
    **fused("mlp.experts", "gate_up_proj", "down_proj", interleaved=True, transposed=True),
    f"{_EXPERTS}.w1.bias": (_GATE_UP,),
    f"{_EXPERTS}.w2.bias": (Part("mlp.experts.down_proj_bias", stacked=True),),
    f"{_EXPERTS}.w3.bias": (replace(_GATE_UP, half=1),),
}
_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    layers = config.need("num_hidden_layers")
    alternating = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
    config.ignore("experts_per_token", "initial_context_length")  # said again under the names below
    config.expect("attention_bias", True)
    return {
        **sizes(config),
        "head_dim": config.get("head_dim", 64),
        "num_local_experts": config.need("num_local_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": config.need("intermediate_size"),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rotary": rotary(config, 150000.0, scaling=_YARN),
        "router": Router(bias=True),
        "attention": Attention(qkv_bias=True, output_bias=True, sinks=True),
        "activation": Activation(
            limit=config.get("swiglu_limit", 7.0), alpha=config.get("swiglu_alpha", 1.702), offset=1.0
        ),
        "expert_bias": True,
        **windows(config, 128, alternating),
    }
