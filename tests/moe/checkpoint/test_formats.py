"""Checkpoints whose weights are codes: fp8 in blocks, MXFP4, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import VOCABULARY, make
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine

IDS = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))


def declare(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))


def test_fp8_blocks(tmp_path: Path) -> None:
    """Widths that blocks do not divide; the reference multiplies block by block."""
    make("qwen3_moe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    decoded = dict(tensors)
    for name, value in tensors.items():
        if not name.endswith("proj.weight"):
            stored[name] = value
            continue
        rows, inputs = (-(-n // 24) for n in value.shape)
        scales = torch.rand(rows, inputs) + 0.5
        codes = (value / 0.5).to(torch.float8_e4m3fn)
        expected = codes.float()
        for row in range(rows):
            for column in range(inputs):
                expected[24 * row : 24 * row + 24, 24 * column : 24 * column + 24] *= scales[row, column]
        stored |= {name: codes, f"{name}_scale_inv": scales}
        decoded[name] = expected
    save_file(decoded, tmp_path / "model.safetensors", {"format": "pt"})
    logits = Engine.load(tmp_path, dtype=torch.float32).logits(IDS)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    declare(tmp_path, quant_method="fp8", weight_block_size=[24, 24], activation_scheme="dynamic")
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.expert(0, 3)[1], decoded["model.layers.0.mlp.experts.3.down_proj.weight"])
    torch.testing.assert_close(Engine.load(tmp_path, dtype=torch.float32).logits(IDS), logits, rtol=0, atol=2e-5)
    without = {k: v for k, v in stored.items() if not k.endswith("0.self_attn.q_proj.weight_scale_inv")}
    save_file(without, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"q_proj\.weight' holds weights without their scales"):
        Checkpoint(tmp_path)


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """transformers' own decoding of blocks and scales is the reference; it returns experts as `[inputs, outputs]`."""
    make("gpt_oss", tmp_path, intermediate_size=64)
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    stored, decoded = dict(tensors), dict(tensors)
    for name, value in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = value.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator).to(torch.uint8)
            scales = torch.randint(122, 126, (experts, outputs, inputs // 32), generator=generator).to(torch.uint8)
            del stored[name]
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            decoded[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    save_file(decoded, tmp_path / "model.safetensors", {"format": "pt"})
    logits = Engine.load(tmp_path, dtype=torch.float32).logits(IDS)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    declare(tmp_path, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"])
    torch.testing.assert_close(Engine.load(tmp_path, dtype=torch.float32).logits(IDS), logits, rtol=0, atol=2e-5)


def test_types_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    make("mixtral", tmp_path, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = Engine.load(tmp_path).logits(IDS)
    for name in ("model.layers.1.block_sparse_moe.experts.3.w1.weight", "model.layers.0.self_attn.q_proj.weight"):
        tensors[name] = tensors[name].float()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(Engine.load(tmp_path).logits(IDS), expected)


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors", "gptq", "awq"])
def test_other_methods_are_named(method: str, tmp_path: Path) -> None:
    make("mixtral", tmp_path)
    declare(tmp_path, quant_method=method, bits=4)
    with pytest.raises(UserError, match=f"weights quantised with '{method}' are not supported .*GGUF"):
        Checkpoint(tmp_path)


def test_python_objects_are_named_and_not_loaded(tmp_path: Path) -> None:
    make("mixtral", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds Python objects, which are never loaded"):
        Checkpoint(tmp_path)
