"""The identity of weights: the same wherever and however they lie, another for other weights, cheap to find."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gguf_models
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import make
from tiny_mixtral import TINY, make_model
from transformers import MixtralConfig, MixtralForCausalLM

from lumoe.errors import UserError
from lumoe.moe.checkpoint import identity
from lumoe.moe.checkpoint.weights import Checkpoint


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def rewritten(folder: Path, output: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write a model's tensors in one file, beside a copy of its configuration."""
    output.mkdir()
    (output / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({name: value.contiguous() for name, value in tensors.items()}, output / "model.safetensors")
    return output


def test_place_shards_and_stacking_do_not_count(model_bf16: Path, tmp_path: Path) -> None:
    found = Checkpoint(model_bf16).identity
    tensors = tensors_of(model_bf16)
    assert len(list(model_bf16.glob("*.safetensors"))) > 1
    assert Checkpoint(rewritten(model_bf16, tmp_path / "one", tensors)).identity == found
    stacked = {name: value for name, value in tensors.items() if "block_sparse_moe" not in name}
    for layer in range(3):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        w1, w2, w3 = (
            torch.stack([tensors[f"{old}experts.{expert}.{name}.weight"] for expert in range(4)])
            for name in ("w1", "w2", "w3")
        )
        stacked |= {
            f"{new}gate.weight": tensors[f"{old}gate.weight"],
            f"{new}experts.gate_up_proj": torch.cat((w1, w3), dim=1),
            f"{new}experts.down_proj": w2,
        }
    assert Checkpoint(rewritten(model_bf16, tmp_path / "stacked", stacked)).identity == found


def test_other_weights_of_the_same_shape_have_another(model_bf16: Path, tmp_path: Path) -> None:
    tensors = tensors_of(model_bf16)
    seen = {Checkpoint(model_bf16).identity}
    for index, name in enumerate(
        [
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
            "model.layers.2.block_sparse_moe.gate.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ]
    ):
        changed = tensors | {name: tensors[name] * 1.01}
        seen.add(Checkpoint(rewritten(model_bf16, tmp_path / str(index), changed)).identity)
    exchanged = dict(tensors)
    a, b = (f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight" for expert in (0, 1))
    exchanged[a], exchanged[b] = tensors[b], tensors[a]
    seen.add(Checkpoint(rewritten(model_bf16, tmp_path / "exchanged", exchanged)).identity)
    assert len(seen) == 5


def test_gguf_files_have_one(model_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = gguf_models.write(model_bf16, tmp_path / "first.gguf", "Q8_0")
    found = Checkpoint(first).identity
    assert found != Checkpoint(model_bf16).identity  # other weights: they were rounded
    assert Checkpoint(first.rename(tmp_path / "moved.gguf")).identity == found
    torch.manual_seed(1)
    MixtralForCausalLM(MixtralConfig(**TINY)).save_pretrained(tmp_path / "other")
    assert Checkpoint(gguf_models.write(tmp_path / "other", tmp_path / "other.gguf", "Q8_0")).identity != found


@pytest.mark.parametrize("changed", ["blocks", "scales"])
def test_codes_and_their_scales_count(changed: str, tmp_path: Path) -> None:
    make("gpt_oss", tmp_path / "model", intermediate_size=64)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 127, shape, generator=generator, dtype=torch.uint8)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("{", '{"quantization_config": {"quant_method": "mxfp4"},', 1))
    found = Checkpoint(rewritten(tmp_path / "model", tmp_path / "codes", tensors)).identity
    tensors[f"model.layers.0.mlp.experts.gate_up_proj_{changed}"][1] ^= 1
    assert Checkpoint(rewritten(tmp_path / "model", tmp_path / "changed", tensors)).identity != found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of bytes that were read from files, reading by reading."""
    counted: list[int] = []

    def pread(file: int, size: int, offset: int, *, really: Callable[[int, int, int], bytes] = os.pread) -> bytes:
        counted.append(size)
        return really(file, size, offset)

    monkeypatch.setattr(identity.os, "pread", pread)
    return counted


def test_little_of_a_file_is_read(
    model_bf16: Path, tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Checkpoint(model_bf16).identity
    tensors = sum(1 for _ in Checkpoint(model_bf16).architecture.tensors())
    assert 0 < len(read) <= 3 * tensors
    assert max(read) <= 3 * 256
    read.clear()
    monkeypatch.setattr(identity, "MOST_SAMPLES", 20)
    fewer = Checkpoint(model_bf16).identity
    assert len(read) == 20
    assert fewer != whole
    other = make_model(tmp_path, torch.float32)
    assert Checkpoint(other).identity != fewer


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path, torch.bfloat16))
    shard = checkpoint.files[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{shard}: cut off"):
        _ = checkpoint.identity
    checkpoint.files[-1].unlink()
    shard.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        _ = checkpoint.identity
