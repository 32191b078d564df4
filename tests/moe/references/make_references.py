"""Tiny checkpoints and their logits from a newer transformers than the lock has: references of what that one lacks.

    python -m venv build/newest && build/newest/bin/pip install torch==2.13.0 transformers==5.24.0
    build/newest/bin/python tests/moe/references/make_references.py

Version 4.57.6 has no MiniMax-M2 and no Qwen3.5-MoE. It does not read gpt-oss's `swiglu_alpha` nor Qwen2's
`layer_types`. Where experts are chosen by groups it gives the others a score of 0, which may be more than one with a
negative correction; DeepSeek's own code and version 5 give minus infinity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

SHARED: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
GROUPED = {
    "moe_intermediate_size": 16, "intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
}  # fmt: skip
QWEN3_5 = {
    "num_hidden_layers": 4, "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "minimax_m2": ("minimax_m2", {
        "head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 16, "rotary_dim": 8,
    }),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", QWEN3_5),
    "deepseek_v3": ("deepseek_v3", {
        **GROUPED, "num_key_value_heads": 4, "kv_lora_rank": 12, "q_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8,
    }),
    "gpt_oss": ("gpt_oss", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16, "head_dim": 16, "sliding_window": 7,
        "swiglu_alpha": 1.3, "swiglu_limit": 0.5,
    }),
    "qwen2_moe": ("qwen2_moe", {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 48,
        "shared_expert_intermediate_size": 24, "use_sliding_window": True, "sliding_window": 9,
    }),
    "glm4_moe": ("glm4_moe", {**GROUPED, "head_dim": 16, "use_qk_norm": True}),
}  # fmt: skip
TOKENS = 88


def make(name: str, folder: Path) -> None:
    """Write a checkpoint in bfloat16 and what it gives in float32: `ids [2, TOKENS]`, `logits [2, TOKENS, V]`."""
    kind, settings = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    config = transformers.AutoConfig.for_model(kind, **{**SHARED, **settings})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" not in key:
                begun = float(tensor.flatten()[0]) if "norm" in key else 0.0
                spread = 1.0 if "correction" in key else 0.2
                tensor.copy_(tensor.normal_(begun, spread).bfloat16())
    ids = torch.randint(3, SHARED["vocab_size"], (2, TOKENS), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = model(ids).logits
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    provenance = {"transformers": transformers.__version__, "torch": torch.__version__, "dtype": "float32"}
    save_file({"ids": ids, "logits": logits}, folder / "expected.safetensors", provenance)


if __name__ == "__main__":
    for name in MODELS:
        make(name, Path(__file__).with_name(name))
        print(json.dumps({"made": name}))
