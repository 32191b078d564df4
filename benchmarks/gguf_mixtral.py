"""A Mixtral checkpoint as a llama.cpp file with Q4_0 matrices, so that llama.cpp can be timed on the same weights.

    python benchmarks/gguf_mixtral.py --model build/true-width/model --output build/true-width/q4_0.gguf

Needs the package `gguf`. The vocabulary is a placeholder (llama.cpp does not start without one): prompts are token ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from lumoe.files import atomic_path
from lumoe.moe.checkpoint import Checkpoint, expert_name

Q4_0 = gguf.GGMLQuantizationType.Q4_0
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


def convert(model: Path, output: Path) -> None:
    """Write `model` as one GGUF file; every matrix but the router is Q4_0, norms and router are float32."""
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
        writer.add_rope_freq_base(a.rope_theta)
        writer.add_rope_dimension_count(a.head_width)
        writer.add_expert_count(a.num_local_experts)
        writer.add_expert_used_count(a.num_experts_per_tok)
        names = ["<unk>", "<s>", "</s>", *(f"<{index}>" for index in range(3, a.vocab_size))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(names)
        writer.add_token_scores([0.0] * a.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        for name, values, quantized in tensors(checkpoint):
            writer.add_tensor(f"{name}.weight", values, raw_dtype=Q4_0 if quantized else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[np.generic], bool]]:
    """Yield llama.cpp's name of each tensor, its values (packed if they are Q4_0) and whether they are."""
    a = checkpoint.architecture

    def matrix(name: str, heads: int | None = None) -> NDArray[np.uint8]:
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


def pack(weight: torch.Tensor) -> NDArray[np.uint8]:
    """Quantise float32 `[outputs, inputs]` to Q4_0 bytes."""
    return np.asarray(gguf.quants.quantize(weight.contiguous().numpy(), Q4_0))


def interleave_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key projection: llama.cpp rotates neighbouring rows of a head, checkpoints its halves."""
    rows, inputs = weight.shape
    return weight.view(heads, 2, rows // heads // 2, inputs).transpose(1, 2).reshape(rows, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a Mixtral checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="the GGUF file")
    arguments = parser.parse_args()
    convert(arguments.model, arguments.output)


if __name__ == "__main__":
    main()
