"""Where a GGUF file keeps each tensor of an architecture, and those that its converter made into others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.names import Part
from lumoe.moe.checkpoint.gguf_file import Blocks
from lumoe.moe.checkpoint.safetensors import Entry
from lumoe.moe.checkpoint.stored import Stored

Entries = Mapping[str, Entry | Blocks]
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
_OF_LAYER = {
    "input_layernorm": ("attn_norm",),
    "post_attention_layernorm": ("ffn_norm", "post_attention_norm"),
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_output",),
    "self_attn.q_norm": ("attn_q_norm",),
    "self_attn.k_norm": ("attn_k_norm",),
    "self_attn.q_a_proj": ("attn_q_a",),
    "self_attn.q_a_layernorm": ("attn_q_a_norm",),
    "self_attn.q_b_proj": ("attn_q_b",),
    "self_attn.kv_a_proj_with_mqa": ("attn_kv_a_mqa",),
    "self_attn.kv_a_layernorm": ("attn_kv_a_norm",),
    "self_attn.kv_b_proj": ("attn_kv_b",),
    "linear_attn.in_proj_qkvz": ("ssm_in",),
    "linear_attn.in_proj_ba": ("ssm_ba",),
    "linear_attn.in_proj_qkv": ("attn_qkv",),
    "linear_attn.in_proj_z": ("attn_gate",),
    "linear_attn.in_proj_b": ("ssm_beta",),
    "linear_attn.in_proj_a": ("ssm_alpha",),
    "linear_attn.norm": ("ssm_norm",),
    "linear_attn.out_proj": ("ssm_out",),
    "block_sparse_moe.gate": ("ffn_gate_inp",),
    "block_sparse_moe.shared.w1": ("ffn_gate_shexp",),
    "block_sparse_moe.shared.w2": ("ffn_down_shexp",),
    "block_sparse_moe.shared.w3": ("ffn_up_shexp",),
    "block_sparse_moe.shared.gate": ("ffn_gate_inp_shexp",),
    "mlp.w1": ("ffn_gate",),
    "mlp.w2": ("ffn_down",),
    "mlp.w3": ("ffn_up",),
}
# Experts are stacked; the products of gate and up may be one tensor, one half after the other.
_EXPERTS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "w1": (("ffn_gate_exps", None), ("ffn_gate_up_exps", 0)),
    "w2": (("ffn_down_exps", None),),
    "w3": (("ffn_up_exps", None), ("ffn_gate_up_exps", 1)),
}
_OTHERS = {
    "self_attn.sinks": "attn_sinks.weight",
    "block_sparse_moe.gate.correction": "exp_probs_b.bias",
    "linear_attn.dt_bias": "ssm_dt.bias",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_KIND = re.compile(r"(.*)\.(weight|bias)")
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w\d)")


def gguf_places(name: str) -> tuple[tuple[Part, ...], int]:
    """Return where a tensor of an architecture may be in a GGUF file, and the number of its expert (0 for others)."""
    if name in _WHOLE:
        return (Part(_WHOLE[name]),), 0
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return (), 0
    prefix, rest = f"blk.{layer[1]}", layer[2]
    if rest in _OTHERS:
        return (Part(f"{prefix}.{_OTHERS[rest]}"),), 0
    matched = _KIND.fullmatch(rest)
    if matched is None:
        return (), 0
    if expert := _EXPERT.fullmatch(matched[1]):
        places = _EXPERTS[expert[2]]
        parts = [Part(f"{prefix}.{theirs}.{matched[2]}", stacked=True, half=half) for theirs, half in places]
        return tuple(parts), int(expert[1])
    return tuple(Part(f"{prefix}.{theirs}.{matched[2]}") for theirs in _OF_LAYER.get(matched[1], ())), 0


def find_in_gguf(entries: Entries, part: Part, expert: int, experts: int) -> Entry | Blocks | None:
    """Return where `part` is, if it is there.

    Raises:
        UserError: it holds another number of experts.
    """
    entry = entries.get(part.name)
    if entry is None or not part.stacked:
        return entry
    if entry.shape[0] != experts:
        raise UserError(
            f"{entry.path}: the tensor '{entry.name}' has shape {list(entry.shape)}, not of {experts} experts"
        )
    found = entry.part(expert, experts, entry.shape[1:])
    if part.half is None:
        return found
    return found.part(part.half, 2, (found.shape[0] // 2, *found.shape[1:]))


@dataclass(frozen=True)
class Made:
    """A tensor that is computed of others in the file.

    Attributes:
        sources: the others.
        make: from their values, float32, to its own.
    """

    sources: tuple[Entry | Blocks, ...]
    shape: tuple[int, ...]
    make: Callable[..., torch.Tensor]

    @property
    def path(self) -> Path:
        return self.sources[0].path

    @property
    def name(self) -> str:
        return self.sources[0].name

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for source in self.sources for entry in source.entries)

    def read(self) -> torch.Tensor:
        """Return the values, float32.

        Raises:
            UserError: the file ends too early.
        """
        return self.make(*(source.read().float() for source in self.sources)).reshape(self.shape).contiguous()


def made_of_others(entries: Entries, name: str, architecture: Architecture) -> Stored | None:
    """Return a tensor that the converter of GGUF files made into others, if these are there.

    - A decay's logarithm is stored as minus its exponential.
    - A convolution has no axis of length 1.
    - Latent attention's projection to keys and values is two: `[heads, rank, plain]` and `[heads, value, rank]`.
    - Rates and decays of Qwen3-Next are one matrix, those of each key head's value heads side by side.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return None
    a, rest = architecture, layer[2]

    def found(*theirs: str) -> tuple[Entry | Blocks, ...] | None:
        named = [entries.get(f"blk.{layer[1]}.{each}") for each in theirs]
        return None if None in named else tuple(entry for entry in named if entry is not None)

    if (
        rest == "self_attn.kv_b_proj.weight"
        and a.attention.latent
        and (parts := found("attn_k_b.weight", "attn_v_b.weight"))
    ):
        at, heads = a.attention.latent, a.num_attention_heads
        _check(parts, [(heads, at.rank, at.plain), (heads, at.value, at.rank)])
        return Made(parts, (heads * (at.plain + at.value), at.rank), _keys_above_values)
    if a.delta is None:
        return None
    d = a.delta
    if rest == "linear_attn.A_log" and (parts := found("ssm_a")):
        _check(parts, [(d.value_heads,)])
        return Made(parts, (d.value_heads,), lambda value: (-value).log())
    if rest == "linear_attn.conv1d.weight" and (parts := found("ssm_conv1d.weight")):
        _check(parts, [(d.channels, d.convolution)])
        return parts[0].part(0, 1, (d.channels, 1, d.convolution))
    if rest in ("linear_attn.in_proj_b.weight", "linear_attn.in_proj_a.weight") and (parts := found("ssm_ba.weight")):
        _check(parts, [(2 * d.value_heads, a.hidden_size)])
        half, heads = int(rest.startswith("linear_attn.in_proj_a")), d.key_heads
        return Made(
            parts, (d.value_heads, a.hidden_size), lambda value: value.view(heads, 2, -1, a.hidden_size)[:, half]
        )
    return None


def _keys_above_values(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.cat((keys.transpose(1, 2), values), dim=1)


def _check(found: tuple[Entry | Blocks, ...], expected: Sequence[tuple[int, ...]]) -> None:
    for entry, shape in zip(found, expected, strict=True):
        if entry.shape != shape:
            raise UserError(
                f"{entry.path}: the tensor '{entry.name}' has shape {list(entry.shape)}, its metadata say {list(shape)}"
            )
