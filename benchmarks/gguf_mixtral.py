"""A Mixtral checkpoint as a llama.cpp file, so that llama.cpp can be timed on the same weights.

    python benchmarks/gguf_mixtral.py --model build/true-width/model --output build/true-width/q4_0.gguf
    python benchmarks/gguf_mixtral.py --model data/models/mini-mixtral --type f16 --output build/mini-f16.gguf

Needs the package `gguf`. A byte-level tokenizer in the model's folder is taken along with its chat template; without
one the vocabulary is a placeholder (llama.cpp does not start without any) and prompts are token ids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from lumoe.files import atomic_path
from lumoe.moe.checkpoint.weights import Checkpoint, expert_name

# What matrices are stored as -> (their type, the type of the file).
TYPES = {
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


def convert(model: Path, output: Path, kind: str) -> None:
    """Write `model` as one GGUF file; every matrix but the router is of type `kind`, norms and router are float32."""
    stored, file_type = TYPES[kind]
    checkpoint = Checkpoint(model)
    a = checkpoint.architecture
    with atomic_path(output) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_context_length(a.max_position_embeddings)
        writer.add_embedding_length(a.hidden_size)
        writer.add_block_count(a.num_hidden_layers)
        writer.add_feed_forward_length(a.intermediate_size)
        writer.add_head_count(a.num_attention_heads)
        writer.add_head_count_kv(a.num_key_value_heads)
        writer.add_layer_norm_rms_eps(a.rms_norm_eps)
        writer.add_rope_freq_base(a.rotary.base)
        writer.add_rope_dimension_count(a.head_width)
        writer.add_expert_count(a.num_local_experts)
        writer.add_expert_used_count(a.num_experts_per_tok)
        if (model / "tokenizer.json").is_file():
            add_tokenizer(writer, model)
        else:
            add_placeholder(writer, a.vocab_size)
        writer.add_file_type(file_type)
        for name, values, packed in tensors(checkpoint, stored):
            writer.add_tensor(f"{name}.weight", values, raw_dtype=stored if packed else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, model: Path) -> None:
    """Take over a byte-level BPE tokenizer, as GPT-2's: tokens, merges, the end of text and the chat template."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    written = json.loads((model / "tokenizer.json").read_text())
    special = {entry["content"]: entry["id"] for entry in written["added_tokens"] if entry["special"]}
    tokens = sorted(written["model"]["vocab"], key=written["model"]["vocab"].__getitem__)
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


def add_placeholder(writer: gguf.GGUFWriter, size: int) -> None:
    """Write a vocabulary that stands for no text."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<{index}>" for index in range(3, size))])
    writer.add_token_scores([0.0] * size)


def tensors(
    checkpoint: Checkpoint, stored: gguf.GGMLQuantizationType
) -> Iterator[tuple[str, NDArray[np.generic], bool]]:
    """Yield llama.cpp's name of each tensor, its values (bytes if they are of type `stored`) and whether they are."""
    a = checkpoint.architecture

    def pack(weight: torch.Tensor) -> NDArray[np.generic]:
        return np.asarray(gguf.quants.quantize(weight.contiguous().numpy(), stored))

    def matrix(name: str, heads: int | None = None) -> NDArray[np.generic]:
        weight = checkpoint.tensor(f"{name}.weight").float()
        return pack(interleave_halves(weight, heads) if heads else weight)

    def vector(name: str) -> NDArray[np.float32]:
        return np.asarray(checkpoint.tensor(f"{name}.weight").float().numpy())

    yield "token_embd", matrix("model.embed_tokens"), True
    yield "output_norm", vector("model.norm"), False
    yield "output", matrix("model.embed_tokens" if a.tie_word_embeddings else "lm_head"), True
    for layer in range(a.num_hidden_layers):
        theirs, ours = f"blk.{layer}", f"model.layers.{layer}"
        yield f"{theirs}.attn_norm", vector(f"{ours}.input_layernorm"), False
        yield f"{theirs}.ffn_norm", vector(f"{ours}.post_attention_layernorm"), False
        yield f"{theirs}.ffn_gate_inp", vector(f"{ours}.block_sparse_moe.gate"), False
        yield f"{theirs}.attn_q", matrix(f"{ours}.self_attn.q_proj", a.num_attention_heads), True
        yield f"{theirs}.attn_k", matrix(f"{ours}.self_attn.k_proj", a.num_key_value_heads), True
        yield f"{theirs}.attn_v", matrix(f"{ours}.self_attn.v_proj"), True
        yield f"{theirs}.attn_output", matrix(f"{ours}.self_attn.o_proj"), True
        for name, part in EXPERT_NAMES.items():
            packed = [
                pack(checkpoint.tensor(expert_name(layer, expert, name)).float())
                for expert in range(a.num_local_experts)
            ]
            yield f"{theirs}.{part}", np.stack(packed), True


def interleave_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key projection: llama.cpp rotates neighbouring rows of a head, checkpoints its halves."""
    rows, inputs = weight.shape
    return weight.view(heads, 2, rows // heads // 2, inputs).transpose(1, 2).reshape(rows, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Mixtral checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="of the matrices")
    arguments = parser.parse_args()
    convert(arguments.model, arguments.output, arguments.type)


if __name__ == "__main__":
    main()
