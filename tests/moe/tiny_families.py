"""A tiny random checkpoint of each family, made by transformers, and its model there: the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
LEAST_VOCABULARY = 67  # of those in `references`
SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": None,
}  # fmt: skip
GROUPED = {
    "moe_intermediate_size": 32, "intermediate_size": 96, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
}  # fmt: skip
LATENT = {
    **GROUPED, "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "intermediate_size": 96}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 1.8, 1.9, 2.0],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], "short_mscale": 1.1, "long_mscale": 1.3,
    "original_max_position_embeddings": 32,
}  # fmt: skip
# Name -> the family and what its configuration has beside SHARED.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48}),
    "mixtral-window-linear": ("mixtral", {
        "num_local_experts": 6, "intermediate_size": 48, "sliding_window": 9,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    }),
    "qwen3_moe": ("qwen3_moe", {**QWEN, "head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3_moe-all-sparse": ("qwen3_moe", {**QWEN, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3_moe-yarn-tied": ("qwen3_moe", {
        **QWEN, "head_dim": 16, "attention_bias": True, "rope_scaling": YARN, "tie_word_embeddings": True,
    }),
    "qwen3_moe-dynamic": ("qwen3_moe", {**QWEN, "head_dim": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "qwen2_moe": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
    "qwen2_moe-all-sparse": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 40}),
    "qwen2_moe-llama3": ("qwen2_moe", {
        **QWEN, "shared_expert_intermediate_size": 40, "rope_scaling": LLAMA3, "qkv_bias": False,
        "norm_topk_prob": True,
    }),
    "olmoe": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48}),
    "olmoe-ungrouped": ("olmoe", {
        "num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "num_key_value_heads": 4,
    }),
    "olmoe-clipped": ("olmoe", {
        "num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "clip_qkv": 0.7, "norm_topk_prob": True,
    }),
    "granitemoe": ("granitemoe", {
        "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "embedding_multiplier": 12.0,
        "attention_multiplier": 0.11, "residual_multiplier": 0.22, "logits_scaling": 6.0, "tie_word_embeddings": True,
    }),
    "granitemoeshared": ("granitemoeshared", {
        "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "shared_intermediate_size": 40,
        "attention_multiplier": 0.25, "attention_bias": True,
    }),
    "gpt_oss": ("gpt_oss", {
        "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16, "sliding_window": 7,
        "rope_scaling": {**YARN, "truncate": False},
    }),
    "gpt_oss-plain": ("gpt_oss", {
        "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16, "sliding_window": 7,
        "rope_scaling": {"rope_type": "default"},
    }),
    "glm4_moe": ("glm4_moe", {**GROUPED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-one-group": ("glm4_moe", {
        **GROUPED, "head_dim": 32, "n_group": 1, "topk_group": 1, "partial_rotary_factor": 0.25,
        "norm_topk_prob": False,
    }),
    "dots1": ("dots1", {**GROUPED, "head_dim": 16, "sliding_window": 9, "max_window_layers": 1}),
    "dots1-ungrouped": ("dots1", {**GROUPED, "num_key_value_heads": 4, "head_dim": 16, "sliding_window": None}),
    "ernie4_5_moe": ("ernie4_5_moe", {
        "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32, "intermediate_size": 96,
        "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
    }),
    "phimoe": ("phimoe", {
        "num_local_experts": 6, "intermediate_size": 48, "attention_bias": True, "lm_head_bias": True,
        "router_jitter_noise": 0.1,
    }),
    "phimoe-longrope": ("phimoe", {"num_local_experts": 6, "intermediate_size": 48, "rope_scaling": LONGROPE}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {
        "num_experts": 6, "moe_topk": [2, 2, 2], "intermediate_size": 48, "head_dim": 16,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    }),
    "deepseek_v2": ("deepseek_v2", {
        **LATENT, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False, "scoring_func": "softmax",
    }),
    "deepseek_v2-greedy": ("deepseek_v2", {**LATENT, "topk_method": "greedy", "norm_topk_prob": False}),
    "deepseek_v2-groups": ("deepseek_v2", {**LATENT, "topk_method": "group_limited_greedy", "norm_topk_prob": False}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "deepseek_v3-yarn": ("deepseek_v3", {**LATENT, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "qwen3_next": ("qwen3_next", {
        **QWEN, "num_hidden_layers": 4, "head_dim": 16, "shared_expert_intermediate_size": 40,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8,
    }),
    "qwen3_next-square": ("qwen3_next", {
        **QWEN, "num_hidden_layers": 4, "head_dim": 16, "shared_expert_intermediate_size": 40,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    }),
    "aria_text": ("aria_text", {
        "moe_num_experts": 6, "moe_topk": 3, "intermediate_size": 48, "moe_num_shared_experts": 2,
    }),
}  # fmt: skip


def make(kind_of: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Any:
    """Write a random checkpoint of `MODELS` into `folder` and return transformers' model, in float32 or `dtype`."""
    kind, settings = MODELS[kind_of]
    torch.manual_seed(sum(map(ord, kind_of)))
    config = AutoConfig.for_model(kind, **{**SHARED, **settings, **changes})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    kept = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in kept:
            if "inv_freq" not in name:
                # What transformers begins with ones or zeros stays near them: norms, in either convention.
                begun = float(tensor.flatten()[0]) if "norm" in name else 0.0
                tensor.normal_(begun, 0.1 if kind == "qwen3_next" else 0.2)
                if "correction" in name:
                    # Version 4.57.6 gives experts of other groups a score of 0: only below what all others have
                    # is that right. `references` has negative ones.
                    tensor.abs_()
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def checkpoint(name: str, folder: Path) -> Path:
    """Return a checkpoint of `references`, or one of `MODELS` that is written into `folder`."""
    kept = Path(__file__).with_name("references") / name
    if name not in MODELS and kept.is_dir():
        return kept
    make(name, folder)
    return folder
