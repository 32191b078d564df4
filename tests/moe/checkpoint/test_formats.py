"""Checkpoints whose weights are codes: fp8 in blocks, MXFP4, and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import VOCABULARY, make
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from lumoe.errors import UserError
from lumoe.moe.checkpoint.storage import METHODS
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine

IDS = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))


def declare(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Difference of probabilities at a token in the middle: at some, rounding chooses another expert."""
    return float((found.float().softmax(-1) - exact.softmax(-1)).abs().sum(-1).median())


def check_held(method: str, folder: Path, exact: Path) -> None:
    """Memory holds codes or 16 bits as the table of formats says: it takes clearly less than `exact`, or as much."""
    said = METHODS[method]
    engine, whole = Engine.load(folder), Engine.load(exact)
    found = engine.model.source.nbytes(16) / whole.model.source.nbytes(16), engine.decoder.nbytes / whole.decoder.nbytes
    for share, held in zip(found, (said.experts, said.rest), strict=True):
        assert share < 0.8 if held == "codes" else share == 1


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
    shutil.copytree(tmp_path, tmp_path / "exact")
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    declare(tmp_path, quant_method="fp8", weight_block_size=[24, 24], activation_scheme="dynamic")
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.expert(0, 3)[1], decoded["model.layers.0.mlp.experts.3.down_proj.weight"])
    torch.testing.assert_close(Engine.load(tmp_path, dtype=torch.float32).logits(IDS), logits, rtol=0, atol=2e-5)
    check_held("fp8", tmp_path, tmp_path / "exact")
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
    rounded = distance(Engine.load(tmp_path).logits(IDS), logits)
    shutil.copytree(tmp_path, tmp_path / "exact")
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    declare(tmp_path, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"])
    torch.testing.assert_close(Engine.load(tmp_path, dtype=torch.float32).logits(IDS), logits, rtol=0, atol=2e-5)
    # In bfloat16 the experts compute from the codes: 17 bytes for 32 weights.
    engine = Engine.load(tmp_path)
    a, source = Checkpoint(tmp_path).architecture, engine.model.source
    assert (source.stored_as, source.kernel(16), source.precisions) == ("MXFP4", "codes", (16,))
    assert source.nbytes(16) <= a.expert_parameters * 17 / 32 + 4096
    assert distance(engine.logits(IDS), logits) < 1.5 * rounded
    check_held("mxfp4", tmp_path, tmp_path / "exact")


def test_types_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    make("mixtral", tmp_path, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = Engine.load(tmp_path).logits(IDS)
    for name in ("model.layers.1.block_sparse_moe.experts.3.w1.weight", "model.layers.0.self_attn.q_proj.weight"):
        tensors[name] = tensors[name].float()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(Engine.load(tmp_path).logits(IDS), expected)


def pack(codes: np.ndarray[Any, Any], order: Sequence[int]) -> np.ndarray[Any, Any]:
    """Eight columns in an int32: nibble i holds column order[i] of eight."""
    packed = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for word in range(packed.shape[1]):
        for nibble in range(8):
            packed[:, word] |= codes[:, 8 * word + order[nibble]].astype(np.uint32) << np.uint32(4 * nibble)
    return packed.view(np.int32)


class Quantised(NamedTuple):
    """A matrix `[outputs, inputs]` as GPTQ or AWQ store it, and the values that it stands for."""

    tensors: dict[str, torch.Tensor]
    values: torch.Tensor


def quantised(shape: tuple[int, int], layout: str, group: int, seed: int) -> Quantised:
    """Random codes, each value computed by itself: `(code - zero) * scale` of its input's group.

    GPTQ packs neighbours along the inputs, low nibble first, and stores each zero less one (its second layout as it
    is); with `act` inputs belong to groups in any order. AWQ packs along the outputs, even columns before odd ones.
    """
    draw = np.random.default_rng(seed)
    outputs, inputs = shape
    codes = draw.integers(0, 16, (inputs, outputs), dtype=np.uint8)
    zeros = draw.integers(0, 16, (inputs // group, outputs), dtype=np.uint8)
    scales = draw.uniform(0.002, 0.02, zeros.shape).astype(np.float16)
    groups = np.arange(inputs) // group
    if layout == "act":
        draw.shuffle(groups)
    values = (codes.astype(np.float64) - zeros[groups]) * scales[groups].astype(np.float64)
    plain, awq = list(range(8)), [0, 2, 4, 6, 1, 3, 5, 7]
    stored = (zeros.astype(int) - 1).astype(np.uint8) & 15 if layout in ("gptq", "act") else zeros
    if layout == "awq":
        words, packed = pack(codes, awq), pack(zeros, awq)
    else:
        words, packed = np.ascontiguousarray(pack(codes.T, plain).T), pack(stored, plain)
    tensors = {"qweight": words, "qzeros": packed, "scales": scales}
    if layout != "awq":
        tensors["g_idx"] = groups.astype(np.int32)
    return Quantised({n: torch.from_numpy(v) for n, v in tensors.items()}, torch.from_numpy(values.T).float())


def requantised(folder: Path, layout: str, group: int) -> dict[str, torch.Tensor]:
    """Give every projection of a model random 4-bit codes; return the tensors that hold their values instead."""
    tensors = load_file(folder / "model.safetensors")
    stored, decoded = dict(tensors), dict(tensors)
    for seed, (name, value) in enumerate(sorted(tensors.items())):
        if name.endswith("proj.weight"):
            made = quantised((value.shape[0], value.shape[1]), layout, group, seed)
            del stored[name]
            stored |= {name.removesuffix("weight") + part: tensor for part, tensor in made.tensors.items()}
            decoded[name] = made.values.contiguous()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {"bits": 4, "group_size": group, "quant_method": "awq" if layout == "awq" else "gptq"}
    if layout == "awq":
        settings |= {"version": "gemm", "zero_point": True}
    else:
        settings |= {
            "desc_act": layout == "act",
            "sym": False,
            "checkpoint_format": "gptq_v2" if layout == "gptq_v2" else "gptq",
        }
    declare(folder, **settings)
    return decoded


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "act", "awq"])
def test_gptq_and_awq(layout: str, tmp_path: Path) -> None:
    make("qwen3_moe", tmp_path / "model", hidden_size=128, moe_intermediate_size=64)
    make("qwen3_moe", tmp_path / "exact", hidden_size=128, moe_intermediate_size=64)
    decoded = requantised(tmp_path / "model", layout, 32)
    save_file(decoded, tmp_path / "exact" / "model.safetensors", {"format": "pt"})
    for name in ("self_attn.q_proj", "mlp.experts.2.gate_proj"):
        expected = decoded[f"model.layers.2.{name}.weight"]
        ours = name.replace("mlp.experts.2.gate_proj", "block_sparse_moe.experts.2.w1")
        torch.testing.assert_close(Checkpoint(tmp_path / "model").tensor(f"model.layers.2.{ours}.weight"), expected)
    logits = Engine.load(tmp_path / "exact", dtype=torch.float32).logits(IDS)
    engine = Engine.load(tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(engine.logits(IDS), logits, rtol=0, atol=2e-5)
    engine = Engine.load(tmp_path / "model")
    whole = Engine.load(tmp_path / "exact")
    if layout == "act":
        assert engine.model.source.stored_as == ""
        assert engine.model.source.nbytes(16) == whole.model.source.nbytes(16)
    else:
        # Codes of 4 bits, and 16 bits for scale and zero of every 32.
        assert (engine.model.source.stored_as, engine.model.source.precisions) == ("int4", (16,))
        assert engine.model.source.kernel(16) in ("native", "int4")
        assert engine.model.source.nbytes(16) <= 3 * 128 * 64 * 5 / 8 + 4096 + 64 * 6
        check_held("awq" if layout == "awq" else "gptq", tmp_path / "model", tmp_path / "exact")
    assert distance(engine.logits(IDS), logits) < 1.5 * distance(whole.logits(IDS), logits)


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make("qwen3_moe", tmp_path, hidden_size=128, moe_intermediate_size=64)
    requantised(tmp_path, "gptq", 32)
    declare(tmp_path, quant_method="gptq", bits=4, group_size=64)
    with pytest.raises(
        UserError, match=r"qweight' has shape \[\d+, \d+\], its scales .*: not 4-bit codes in groups of 64"
    ):
        Checkpoint(tmp_path)
    for settings, message in (
        ({"quant_method": "gptq", "bits": 3}, "gptq at 3 bits is not supported"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq in the layout 'gemv' is not supported"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "awq without zero points"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq in the layout 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}, "'dynamic' gives some layers"),
    ):
        declare(tmp_path, **settings)
        with pytest.raises(UserError, match=message):
            Checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors"])
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
