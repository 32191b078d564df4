"""A random Mixtral of a few kilobytes on disk, with its tokenizer, made without transformers' models."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from lumoe.files import write_json
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.checkpoint.safetensors import INDEX, SINGLE
from lumoe.moe.checkpoint.tokenizer import train_tokenizer
from lumoe.moe.checkpoint.weights import expected_shapes

CONFIG = {
    "model_type": "mixtral",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}
TEXTS = ["the quick brown fox jumps over the lazy dog", "a stitch in time saves nine", "Zoë pays 5 € for a naïve 🦊"]


def make_model(folder: Path, shards: int = 1) -> Path:
    """Write `config.json`, weights in so many files, and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    generator = torch.Generator().manual_seed(5)
    shapes = expected_shapes(Architecture.model_validate(CONFIG))
    tensors = {name: torch.randn(shape, generator=generator).mul(0.2).bfloat16() for name, shape in shapes.items()}
    if shards == 1:
        save_file(tensors, folder / SINGLE, {"format": "pt"})
    else:
        names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
        placed = {name: names[number % shards] for number, name in enumerate(tensors)}
        for shard in names:
            save_file({name: tensors[name] for name, where in placed.items() if where == shard}, folder / shard)
        write_json(folder / INDEX, {"metadata": {}, "weight_map": placed})
    train_tokenizer(TEXTS * 20, CONFIG["vocab_size"], 64).save_pretrained(folder)  # type: ignore[arg-type]
    return folder
