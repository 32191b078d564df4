"""A checkpoint as a GGUF file, laid out as llama.cpp's converter does it: both readers are held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.checkpoint.gguf_metadata import ALSO, FAMILIES
from lumoe.moe.checkpoint.gguf_places import gguf_places
from lumoe.moe.checkpoint.weights import Checkpoint

NAMES = {ours: theirs for theirs, (ours, _) in FAMILIES.items()} | {
    "granitemoe": "granitemoe",
    **ALSO,
}
# Whose queries and keys the converter reorders; others with neighbours are made so.
_REORDERED = {"mixtral", "granitemoe", "granitemoeshared"}
# Whose second norm is named after what stands before it.
_AFTER = ("gpt-oss", "glm4moe", "qwen3next", "qwen35moe")


def write(model: Path, output: Path, kind: str = "F32", **changes: Any) -> Path:
    """Write a model folder as one GGUF file, its matrices but the routers in the format `kind`.

    Args:
        changes: metadata in place of what the model says, by their full names.
    """
    checkpoint = Checkpoint(model)
    a = checkpoint.architecture
    name = NAMES[a.family]
    writer = gguf.GGUFWriter(output, name)
    for key, value in {**_metadata(checkpoint, name), **changes}.items():
        _add(writer, key, value)
    if (model / "tokenizer.json").is_file():
        add_tokenizer(writer, model)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<{index}>" for index in range(3, a.vocab_size))])
        writer.add_token_scores([0.0] * a.vocab_size)
    stacked: dict[str, list[torch.Tensor]] = {}
    for tensor, shape in a.tensors():
        value = checkpoint.tensor(tensor).float()
        if ".linear_attn." in tensor or tensor.endswith("kv_b_proj.weight"):
            for theirs, part in _converted(a, tensor, value).items():
                _add_tensor(writer, theirs, part, kind)
            continue
        if a.norm_offset and tensor.endswith("norm.weight"):
            value = value + a.norm_offset
        place = gguf_places(tensor)[0][-1 if name in _AFTER and "post_attention" in tensor else 0]
        if a.family in _REORDERED and tensor.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            heads = a.num_attention_heads if "q_proj" in tensor else a.num_key_value_heads
            value = value.view(heads, 2, shape[0] // heads // 2, -1).transpose(1, 2).reshape(shape)
        if place.stacked:
            stacked.setdefault(place.name, []).append(value)
            if len(stacked[place.name]) < a.num_local_experts:
                continue
            value = torch.stack(stacked.pop(place.name))
        _add_tensor(writer, place.name, value.squeeze(0) if tensor.endswith("shared.gate.weight") else value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def _converted(a: Architecture, tensor: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the converter makes of a tensor of latent attention or of a Gated DeltaNet."""
    prefix, name = f"blk.{tensor.split('.')[2]}", tensor.rpartition("self_attn.")[2].rpartition("linear_attn.")[2]
    if (latent := a.attention.latent) is not None:
        value = value.view(a.num_attention_heads, latent.plain + latent.value, latent.rank)
        keys, values = value.split([latent.plain, latent.value], dim=1)
        return {f"{prefix}.attn_k_b.weight": keys.transpose(1, 2), f"{prefix}.attn_v_b.weight": values}
    d = a.delta
    assert d is not None
    if name == "in_proj_qkvz.weight":
        wide = d.value_heads // d.key_heads * d.value
        heads = value.view(d.key_heads, 2 * d.key + 2 * wide, -1).split([d.key, d.key, wide, wide], dim=1)
        query, key, values, gate = (part.flatten(0, 1) for part in heads)
        return {f"{prefix}.attn_qkv.weight": torch.cat((query, key, values)), f"{prefix}.attn_gate.weight": gate}
    if a.family.startswith("qwen3_5"):  # its value heads are reordered
        still = 2 * d.key_heads * d.key if name in ("in_proj_qkv.weight", "conv1d.weight") else 0
        if name == "out_proj.weight":
            value = _tiled(value.t(), d.key_heads, d.value_heads).t()
        elif name != "norm.weight":
            value = torch.cat((value[:still], _tiled(value[still:], d.key_heads, d.value_heads)))
    if name == "A_log":
        return {f"{prefix}.ssm_a": -value.exp()}
    if name == "conv1d.weight":
        return {f"{prefix}.ssm_conv1d.weight": value.squeeze(1)}
    return {gguf_places(tensor)[0][0].name: value}


def _tiled(value: torch.Tensor, key_heads: int, value_heads: int) -> torch.Tensor:
    """Reorder value heads, along the first axis: no longer one key head's after another's, but one of each in turn."""
    heads = value.view(key_heads, value_heads // key_heads, -1, *value.shape[1:])
    return heads.transpose(0, 1).reshape(value.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, value: torch.Tensor, kind: str) -> None:
    whole = value.ndim == 1 or name.endswith((".bias", "ffn_gate_inp.weight", "ssm_conv1d.weight"))
    stored = gguf.GGMLQuantizationType["F32" if whole else kind]
    if value.shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
        stored = gguf.GGMLQuantizationType.F16  # as llama.cpp does where blocks do not fit
    values = np.ascontiguousarray(value.numpy())
    packed = values if stored == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, stored)
    writer.add_tensor(name, packed, raw_dtype=None if whole else stored)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Any] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    add[type(value)](key, value)


def _metadata(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    a = checkpoint.architecture
    r, turned = a.router, a.rotary
    found: dict[str, Any] = {
        "context_length": a.max_position_embeddings,
        "embedding_length": a.hidden_size,
        "block_count": a.num_hidden_layers,
        "feed_forward_length": a.dense_size or a.intermediate_size,
        "expert_feed_forward_length": a.intermediate_size,
        "attention.head_count": a.num_attention_heads,
        "attention.head_count_kv": a.num_key_value_heads,
        "attention.key_length": a.head_width,
        "attention.value_length": a.head_width,
        "attention.layer_norm_rms_epsilon": float(a.rms_norm_eps),
        "rope.freq_base": float(turned.base),
        "rope.dimension_count": turned.width or a.head_width,
        "expert_count": a.num_local_experts,
        "expert_used_count": a.num_experts_per_tok,
    }
    if a.norm == "layer":
        found["attention.layer_norm_epsilon"] = float(a.rms_norm_eps)
    if turned.kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": turned.kind, "rope.scaling.factor": float(turned.settings["factor"])}
        found["rope.scaling.original_context_length"] = turned.original_context
    if turned.settings.get("alpha"):  # the converter has no other place for it
        width = a.head_width
        found["rope.freq_base"] = turned.base * turned.settings["alpha"] ** (width / (width - 2))
    if name in ("qwen2moe", "qwen3moe", "olmoe"):
        found["expert_weights_norm"] = r.normalize
    if a.sliding_window:
        found["attention.sliding_window"] = a.sliding_window
    if a.attention.clip:
        found["attention.clamp_kqv"] = float(a.attention.clip)
    if name in ("glm4moe", "dots1"):
        found |= {
            "leading_dense_block_count": len(a.dense_layers),
            "expert_shared_count": a.shared_size // a.intermediate_size,
            "expert_weights_scale": float(r.scale),
            "expert_weights_norm": r.normalize,
            "expert_gating_func": 2,
            "expert_group_count": r.groups,
            "expert_group_used_count": r.chosen_groups,
        }
    if name == "ernie4_5-moe":
        found |= {
            "leading_dense_block_count": len(a.dense_layers),
            "interleave_moe_layer_step": 1,
            "expert_shared_count": a.shared_size // a.intermediate_size,
            "expert_shared_feed_forward_length": a.shared_size,
        }
    if name in ("qwen2moe", "granitemoe", "hunyuan-moe") and a.shared_size:
        found["expert_shared_feed_forward_length"] = a.shared_size
    if name == "granitemoe":
        found |= {
            "attention.scale": float(a.attention.scale or 1.0),
            "embedding_scale": float(a.embedding_scale),
            "residual_scale": float(a.residual_scale),
            "logit_scale": float(a.logits_divisor),
        }
    if name == "deepseek2":
        latent = a.attention.latent
        assert latent is not None
        found |= {
            "leading_dense_block_count": len(a.dense_layers),
            "expert_shared_count": a.shared_size // a.intermediate_size,
            "expert_weights_scale": float(r.scale),
            "expert_weights_norm": r.normalize,
            "expert_gating_func": 2 if r.score == "sigmoid" else 1,
            "expert_group_count": r.groups,
            "expert_group_used_count": r.chosen_groups,
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": latent.rank,
            "attention.key_length": latent.rank + latent.turned,
            "attention.value_length": latent.rank,
            "attention.key_length_mla": latent.plain + latent.turned,
            "attention.value_length_mla": latent.value,
            "rope.dimension_count": latent.turned,
            "vocab_size": a.vocab_size,
        }
        if latent.query_rank is not None:
            found["attention.q_lora_rank"] = latent.query_rank
        if "mscale_all_dim" in turned.settings:
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * turned.settings["mscale_all_dim"]
    if (d := a.delta) is not None:
        found |= {
            "expert_shared_feed_forward_length": a.shared_size,
            "ssm.conv_kernel": d.convolution,
            "ssm.state_size": d.key,
            "ssm.group_count": d.key_heads,
            "ssm.time_step_rank": d.value_heads,
            "ssm.inner_size": d.value_heads * d.value,
            "full_attention_interval": 4,
        }
    if name == "qwen35moe":
        found["rope.dimension_sections"] = [1, 1, 0, 0]
    if name == "minimax-m2":
        found["expert_gating_func"] = 2
    return {f"{name}.{key}": value for key, value in found.items()}


def add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    """Take over a byte-level BPE tokenizer, as GPT-2's: tokens, merges, the end of text and the chat template."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    written = json.loads((model / "tokenizer.json").read_text())
    special = {entry["content"]: entry["id"] for entry in written["added_tokens"] if entry["special"]}
    vocabulary = written["model"]["vocab"] | special
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    end = special[settings["eos_token"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in written["model"]["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    if (model / "chat_template.jinja").is_file():
        writer.add_chat_template((model / "chat_template.jinja").read_text())
