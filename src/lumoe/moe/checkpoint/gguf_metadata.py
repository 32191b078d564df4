"""What a GGUF file says of its model, in the words of `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lumoe.errors import UserError, nearest

# llama.cpp's name of an architecture -> ours. Those whose queries and keys it turns as neighbours are marked: its
# converter has laid them out for that, or they were made so.
FAMILIES = {
    "llama": ("mixtral", True),
    "qwen2moe": ("qwen2_moe", False),
    "qwen3moe": ("qwen3_moe", False),
    "olmoe": ("olmoe", False),
    "granitemoe": ("granitemoeshared", True),
    "gpt-oss": ("gpt_oss", False),
    "glm4moe": ("glm4_moe", False),
    "dots1": ("dots1", False),
    "ernie4_5-moe": ("ernie4_5_moe", True),
    "phimoe": ("phimoe", False),
    "hunyuan-moe": ("hunyuan_v1_moe", False),
    "minimax-m2": ("minimax_m2", False),
    "deepseek2": ("deepseek_v3", True),
    "qwen3next": ("qwen3_next", False),
    "qwen35moe": ("qwen3_5_moe_text", False),
}
# Kinds of models that have another's name there, and tell by their metadata which they are.
ALSO = {"deepseek_v2": "deepseek2"}
_GATING = {1: "softmax", 2: "sigmoid"}


class Metadata:
    """The keys of a GGUF file, those of its architecture without their prefix."""

    def __init__(self, path: str, values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
        self.path, self.values, self.tensors = path, values, tensors
        self.architecture = str(values.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return what the architecture's key is, or `default`."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """Return what the architecture's key is.

        Raises:
            UserError: it is missing.
        """
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.path}: '{self.architecture}.{key}' is missing")
        return value

    def has(self, name: str) -> bool:
        """Whether any layer has a tensor of this name."""
        return any(tensor.endswith(f".{name}") for tensor in self.tensors)


def config_of(metadata: Metadata) -> dict[str, Any]:
    """Return the configuration that a GGUF file stands for.

    Raises:
        UserError: its architecture is not known, or a key that it needs is missing.
    """
    m = metadata
    if m.architecture not in FAMILIES:
        raise UserError(
            f"{m.path}: the architecture is '{m.architecture}'{nearest(m.architecture, FAMILIES)}; "
            f"supported in GGUF: {', '.join(sorted(FAMILIES))}"
        )
    family, neighbours = FAMILIES[m.architecture]
    if not m.get("expert_count"):
        raise UserError(f"{m.path}: no layer has experts ('{m.architecture}.expert_count' is missing or 0)")
    heads = m.need("attention.head_count")
    common = {
        "model_type": family,
        "num_hidden_layers": m.need("block_count") - m.get("nextn_predict_layers", 0),
        "hidden_size": m.need("embedding_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": m.get("attention.head_count_kv", heads),
        "head_dim": m.get("attention.key_length", m.need("embedding_length") // heads),
        "vocab_size": m.tensors["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in m.tensors,
        "max_position_embeddings": m.need("context_length"),
        "rms_norm_eps": m.get("attention.layer_norm_rms_epsilon", m.get("attention.layer_norm_epsilon")),
        "rope_theta": m.get("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(m),
        "rope_interleaved": neighbours or None,
        "num_experts_per_tok": m.need("expert_used_count"),
        "bos_token_id": m.values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(m),
    }
    found = {**common, **_OF_FAMILY[family](m)}
    return {key: value for key, value in found.items() if value is not None}


def _ends(m: Metadata) -> list[int] | None:
    named = [m.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return sorted({int(token) for token in named if token is not None}) or None


def _scaling(m: Metadata) -> dict[str, Any] | None:
    kind = m.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise UserError(f"{m.path}: rope scaling '{kind}' is not supported in GGUF; known: linear, yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": m.need("rope.scaling.factor")}
    if kind == "yarn":
        if (original := m.get("rope.scaling.original_context_length")) is not None:
            scaling["original_max_position_embeddings"] = original
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if (value := m.get(f"rope.scaling.{theirs}")) is not None:
                scaling[ours] = value
    return scaling


def _experts(m: Metadata) -> int:
    return int(m.get("expert_feed_forward_length") or m.need("feed_forward_length"))


def _mixtral(m: Metadata) -> dict[str, Any]:
    return {"num_local_experts": m.need("expert_count"), "intermediate_size": _experts(m)}


def _qwen(m: Metadata) -> dict[str, Any]:
    normalized = m.architecture == "qwen3moe"
    shared = m.get("expert_shared_feed_forward_length")
    layers = range(m.need("block_count"))
    return {
        "num_experts": m.need("expert_count"),
        "moe_intermediate_size": _experts(m),
        "intermediate_size": m.need("feed_forward_length"),
        "mlp_only_layers": [layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" not in m.tensors],
        "attention_bias": m.has("attn_q.bias") if normalized else None,
        "norm_topk_prob": m.get("expert_weights_norm", normalized),
        "shared_expert_intermediate_size": shared if m.architecture == "qwen2moe" else None,
        "qkv_bias": m.has("attn_q.bias") if m.architecture == "qwen2moe" else None,
    }


def _olmoe(m: Metadata) -> dict[str, Any]:
    clip = m.get("attention.clamp_kqv")
    return {
        "num_experts": m.need("expert_count"),
        "intermediate_size": _experts(m),
        "clip_qkv": clip,
        "norm_topk_prob": m.get("expert_weights_norm", False),
    }


def _granite(m: Metadata) -> dict[str, Any]:
    return {
        **_mixtral(m),
        "attention_bias": m.has("attn_q.bias"),
        "shared_intermediate_size": m.get("expert_shared_feed_forward_length", 0),
        "attention_multiplier": m.get("attention.scale"),
        "embedding_multiplier": m.get("embedding_scale", 1.0),
        "residual_multiplier": m.get("residual_scale", 1.0),
        "logits_scaling": m.get("logit_scale", 1.0),
    }


def _gpt_oss(m: Metadata) -> dict[str, Any]:
    scaling = _scaling(m)
    # transformers' configurations of this family leave the ends of the ramp as they are.
    return {
        **_mixtral(m),
        "sliding_window": m.get("attention.sliding_window", 128),
        "rope_scaling": {**scaling, "truncate": False} if scaling else {"rope_type": "default"},
    }


def _gating(m: Metadata, usual: int, *known: str) -> str:
    """Return what makes scores of the router's products; `usual` is its number where the file does not say."""
    found = _GATING.get(m.get("expert_gating_func", usual), "")
    if found not in known:
        raise UserError(
            f"{m.path}: experts of '{m.architecture}' are chosen by {' or '.join(known)}, the file says otherwise"
        )
    return found


def _by_sigmoid(m: Metadata) -> dict[str, Any]:
    _gating(m, 2, "sigmoid")
    return _grouped(m)


def _grouped(m: Metadata) -> dict[str, Any]:
    return {
        "n_routed_experts": m.need("expert_count"),
        "moe_intermediate_size": _experts(m),
        "intermediate_size": m.need("feed_forward_length"),
        "first_k_dense_replace": m.get("leading_dense_block_count", 0),
        "n_shared_experts": m.get("expert_shared_count", 0),
        "routed_scaling_factor": m.get("expert_weights_scale", 1.0),
        "norm_topk_prob": m.get("expert_weights_norm", True),
        "n_group": m.get("expert_group_count", 1),
        "topk_group": m.get("expert_group_used_count", 1),
    }


def _glm(m: Metadata) -> dict[str, Any]:
    width = m.get("attention.key_length", m.need("embedding_length") // m.need("attention.head_count"))
    return {
        **_by_sigmoid(m),
        "partial_rotary_factor": m.get("rope.dimension_count", width) / width,
        "use_qk_norm": m.has("attn_q_norm.weight"),
        "attention_bias": m.has("attn_q.bias"),
    }


def _ernie(m: Metadata) -> dict[str, Any]:
    width = _experts(m)
    return {
        "num_experts_per_tok": None,
        "moe_k": m.need("expert_used_count"),
        "moe_num_experts": m.need("expert_count"),
        "moe_intermediate_size": width,
        "intermediate_size": m.need("feed_forward_length"),
        "moe_layer_start_index": m.get("leading_dense_block_count", 1),
        "moe_layer_interval": m.get("interleave_moe_layer_step", 1),
        "moe_num_shared_experts": (m.get("expert_shared_feed_forward_length") or 0) // width,
    }


def _phi(m: Metadata) -> dict[str, Any]:
    return {**_mixtral(m), "attention_bias": m.has("attn_q.bias"), "lm_head_bias": "output.bias" in m.tensors}


def _hunyuan(m: Metadata) -> dict[str, Any]:
    return {
        "num_experts_per_tok": None,
        "num_experts": m.need("expert_count"),
        "moe_topk": m.need("expert_used_count"),
        "intermediate_size": m.get("expert_shared_feed_forward_length", m.need("feed_forward_length")),
        "moe_intermediate_size": _experts(m),
    }


def _deepseek(m: Metadata) -> dict[str, Any]:
    sigmoid = _gating(m, 1, "softmax", "sigmoid") == "sigmoid"
    turned = m.need("rope.dimension_count")
    normalized, scale = m.get("expert_weights_norm", False), m.get("expert_weights_scale", 1.0)
    if not sigmoid and normalized and scale != 1.0:
        raise UserError(f"{m.path}: weights of experts are both normalised and scaled, which DeepSeek V2 does not do")
    scaling = _scaling(m)
    if scaling and scaling["rope_type"] == "yarn":
        if (everywhere := m.get("rope.scaling.yarn_log_multiplier")) is None:
            raise UserError(
                f"{m.path}: '{m.architecture}.rope.scaling.yarn_log_multiplier' is missing; fetch a newer conversion"
            )
        # The published models have one value for both; the file keeps a tenth of it.
        scaling |= {"mscale": 10 * everywhere, "mscale_all_dim": 10 * everywhere}
    return {
        **_grouped(m),
        "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
        # The file counts one head of keys and values: the vector that all are made of.
        "num_key_value_heads": m.need("attention.head_count"),
        "head_dim": None,
        "norm_topk_prob": normalized,
        "routed_scaling_factor": scale,
        "topk_method": None if sigmoid else "group_limited_greedy" if m.get("expert_group_count", 1) > 1 else "greedy",
        "q_lora_rank": m.get("attention.q_lora_rank"),
        "kv_lora_rank": m.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": m.get("attention.key_length_mla", m.get("attention.key_length")) - turned,
        "v_head_dim": m.get("attention.value_length_mla", m.get("attention.value_length")),
        "rope_scaling": scaling,
    }


def _delta(m: Metadata) -> dict[str, Any]:
    layers = range(m.need("block_count") - m.get("nextn_predict_layers", 0))
    width, heads = m.need("attention.key_length"), m.need("ssm.time_step_rank")
    first = m.architecture == "qwen3next"
    # How the outputs of the input projections stand: see `Delta`.
    layout = "tiled" if not first else "interleaved" if m.has("ssm_in.weight") else "grouped"
    dense = [layer for layer in layers if f"blk.{layer}.ffn_gate_inp.weight" not in m.tensors]
    return {
        **({"mlp_only_layers": dense, "intermediate_size": m.need("feed_forward_length")} if dense and first else {}),
        "num_experts": m.need("expert_count"),
        "moe_intermediate_size": _experts(m),
        "shared_expert_intermediate_size": m.need("expert_shared_feed_forward_length"),
        "layer_types": [
            "linear_attention" if f"blk.{layer}.ssm_a" in m.tensors else "full_attention" for layer in layers
        ],
        "partial_rotary_factor": m.need("rope.dimension_count") / width,
        "attention_bias": m.has("attn_q.bias"),
        "norm_offset": 0.0,  # the converter has added it
        "linear_num_key_heads": m.need("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": m.need("ssm.state_size"),
        "linear_value_head_dim": m.need("ssm.inner_size") // heads,
        "linear_conv_kernel_dim": m.need("ssm.conv_kernel"),
        "linear_layout": layout,
    }


def _minimax(m: Metadata) -> dict[str, Any]:
    return {**_mixtral(m), "rotary_dim": m.get("rope.dimension_count")}


_OF_FAMILY = {
    "mixtral": lambda m: {**_mixtral(m), "sliding_window": m.get("attention.sliding_window")},
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "olmoe": _olmoe,
    "granitemoeshared": _granite,
    "gpt_oss": _gpt_oss,
    "glm4_moe": _glm,
    "dots1": _by_sigmoid,
    "ernie4_5_moe": _ernie,
    "phimoe": _phi,
    "hunyuan_v1_moe": _hunyuan,
    "minimax_m2": _minimax,
    "deepseek_v3": _deepseek,
    "qwen3_next": _delta,
    "qwen3_5_moe_text": _delta,
}
