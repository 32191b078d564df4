"""A Mixtral of true width and few layers, made on the spot: speed does not depend on what the weights are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lumoe.files import write_csv, write_json
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.checkpoint.safetensors import INDEX
from lumoe.moe.checkpoint.weights import Checkpoint, expected_shapes
from lumoe.moe.kernels.affine import pack_nibbles
from lumoe.moe.quantization.folder import TABLE, save_expert, write_manifest

GROUP = 64
WIDE = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(folder: Path, **changes: object) -> tuple[Path, Path]:
    """Write a random checkpoint and its 4-bit experts into `folder` unless they are there; return both folders.

    Every tensor is a window of one random block, so that gigabytes take seconds; the 4-bit experts are random codes,
    not the checkpoint's own weights quantised.
    """
    model, quantized = folder / "model", folder / "int4"
    values = {**WIDE, **changes}
    architecture = Architecture.model_validate(values)
    if not (quantized / "manifest.json").is_file():
        model.mkdir(parents=True, exist_ok=True)
        quantized.mkdir(exist_ok=True)
        _write_checkpoint(model, architecture)
        write_json(model / "config.json", values)
        _write_experts(quantized, Checkpoint(model))
    return model, quantized


def _write_checkpoint(folder: Path, architecture: Architecture) -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1 << 24, generator=generator).mul_(0.02).bfloat16()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for index, (name, shape) in enumerate(expected_shapes(architecture).items()):
        size = torch.Size(shape).numel()
        begin = 4097 * index % (1 << 20)
        rest = -(-(begin + size) // len(block))
        weight = torch.ones(shape, dtype=torch.bfloat16) if "norm" in name else block.repeat(rest)[begin : begin + size]
        parts = name.split(".")
        shard = f"model-{parts[2]}-{parts[5]}" if "experts" in name else "model-dense"
        shards.setdefault(f"{shard}.safetensors", {})[name] = weight.reshape(shape).clone()
        if "w3" in name:
            save_file(shards[f"{shard}.safetensors"], folder / f"{shard}.safetensors", {"format": "pt"})
            shards[f"{shard}.safetensors"] = dict.fromkeys(shards[f"{shard}.safetensors"], torch.empty(0))
    save_file(shards["model-dense.safetensors"], folder / "model-dense.safetensors", {"format": "pt"})
    placed = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def _write_experts(folder: Path, checkpoint: Checkpoint) -> None:
    import pandas as pd

    a, generator = checkpoint.architecture, torch.Generator().manual_seed(1)
    shapes = dict.fromkeys(("w1", "w3"), (a.intermediate_size, a.hidden_size))
    shapes["w2"] = (a.hidden_size, a.intermediate_size)
    tensors = {}
    for name, (rows, inputs) in shapes.items():
        codes = torch.randint(0, 16, (rows, inputs), generator=generator, dtype=torch.uint8)
        tensors[f"{name}.codes"] = pack_nibbles(codes)
        tensors[f"{name}.scales"] = torch.full((rows, inputs // GROUP), 0.004, dtype=torch.bfloat16)
        tensors[f"{name}.zeros"] = torch.full((rows, inputs // GROUP), 0.001, dtype=torch.bfloat16)
    places = [(layer, e) for layer in range(a.num_hidden_layers) for e in range(a.num_local_experts)]
    for place in places:
        save_expert(folder, *place, tensors, {"key": "random"})
    share = a.num_experts_per_tok / a.num_local_experts
    write_csv(
        folder / TABLE, pd.DataFrame([(*place, share) for place in places], columns=["layer", "expert", "frequency"])
    )
    shape = {
        name: getattr(a, name)
        for name in ("num_hidden_layers", "num_local_experts", "hidden_size", "intermediate_size")
    }
    made = {"method": "rtn", "bits": 4, "group_size": GROUP, "layout": "affine", "shape": shape, "key": "random"}
    write_manifest(folder, {**made, "weights": checkpoint.identity})
