"""A checkpoint is read tensor by tensor, and a damaged one is named before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lumoe.cli.moe import app
from lumoe.errors import UserError
from lumoe.moe.checkpoint.safetensors import INDEX
from lumoe.moe.checkpoint.weights import Checkpoint, expert_name
from lumoe.moe.engine.engine import Engine


@pytest.fixture
def copy(model_bf16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_bf16, tmp_path / "copy"))


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def change(folder: Path, name: str, value: torch.Tensor | None) -> Path:
    """Replace a tensor, or leave it out of its shard."""
    path = shard_of(folder, name)
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path)
    return path


NAME = expert_name(1, 2, "w2")


def test_tensors_equal_safetensors_own_reader(model_bf16: Path) -> None:
    checkpoint = Checkpoint(model_bf16)
    for shard in sorted(model_bf16.glob("*.safetensors")):
        for name, value in load_file(shard).items():
            assert torch.equal(checkpoint.tensor(name), value)


def test_one_file_needs_no_index(model_bf16: Path, tmp_path: Path) -> None:
    tensors = {name: value for shard in model_bf16.glob("*.safetensors") for name, value in load_file(shard).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(model_bf16 / "config.json", tmp_path)
    ids = [1, 2, 3]
    assert torch.equal(Engine.load(tmp_path).logits(ids), Engine.load(model_bf16).logits(ids))


def test_missing_shard(copy: Path) -> None:
    shard = shard_of(copy, NAME)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}.*is missing"):
        Checkpoint(copy)


def test_missing_tensor(copy: Path) -> None:
    shard = change(copy, NAME, None)
    with pytest.raises(UserError, match=f"{shard}.*'{NAME}' is missing"):
        Checkpoint(copy)


def test_truncated_tensor(copy: Path) -> None:
    shard = shard_of(copy, NAME)
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    with pytest.raises(UserError, match=rf"{shard}: the tensor '.*' is cut off"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 64, (8).to_bytes(8, "little") + b"not json", b"\2" + b"\0" * 7 + b"[]"]
)
def test_not_safetensors(copy: Path, content: bytes) -> None:
    shard = shard_of(copy, NAME)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard}: not a whole safetensors file"):
        Checkpoint(copy)


def test_wrong_shape(copy: Path) -> None:
    shard = change(copy, NAME, torch.zeros(64, 127, dtype=torch.bfloat16))
    with pytest.raises(UserError, match=rf"{shard}: the tensor '{NAME}' has shape \[64, 127\].*\[64, 128\]"):
        Checkpoint(copy)


def test_unknown_type(copy: Path) -> None:
    shard = change(copy, NAME, torch.zeros(64, 128, dtype=torch.float64))
    with pytest.raises(UserError, match=f"{shard}.*'{NAME}' has type F64"):
        Checkpoint(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_an_expert_is_found_when_it_is_first_read(copy: Path, value: float) -> None:
    weight = Checkpoint(copy).tensor(NAME)
    weight[3, 5] = value
    shard = change(copy, NAME, weight)
    Checkpoint(copy)
    with pytest.raises(UserError, match=f"{shard}: the tensor '{NAME}' holds NaN or infinite"):
        Engine.load(copy)


def test_nan_outside_the_experts(copy: Path) -> None:
    change(copy, "model.norm.weight", torch.full((64,), float("nan"), dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"'model.norm.weight' holds NaN"):
        Engine.load(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "architecture is 'llama'"),
        ("hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("num_local_experts", "eight", "num_local_experts"),
        ("num_experts_per_tok", 9, "do not agree"),
        ("rope_scaling", {"rope_type": "spiral"}, "rope type 'spiral'"),
    ],
)
def test_unsupported_configuration(copy: Path, key: str, value: object, message: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=message):
        Checkpoint(copy)


def test_rope_base_in_the_newer_place(copy: Path) -> None:
    path = copy / "config.json"
    values = json.loads(path.read_text())
    base = values.pop("rope_theta")
    path.write_text(json.dumps({**values, "rope_parameters": {"rope_theta": base, "rope_type": "default"}}))
    assert Checkpoint(copy).architecture.rotary.base == base


def test_no_folder_and_no_weights(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        Checkpoint(tmp_path / "absent")
    (copy / INDEX).unlink()
    with pytest.raises(UserError, match="neither"):
        Checkpoint(copy)


def test_a_shard_outside_the_folder_is_refused(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"][NAME] = "../elsewhere.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="is missing"):
        Checkpoint(copy)


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_a_damaged_model_leaves_nothing_written(copy: Path, tmp_path: Path, command: str) -> None:
    shard_of(copy, NAME).unlink()
    output = tmp_path / "output"
    arguments = [command, "--model", str(copy), "--output", str(output)]
    if command == "quantize":
        arguments += ["--corpus", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert "is missing" in str(result.exception)
    assert not output.exists()
