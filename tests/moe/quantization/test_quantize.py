"""Quantisation: better than rounding where it should be, resumable, honest about what it fell back to."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_mixtral import make_model

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.calibration import walk
from lumoe.moe.quantization.folder import QuantizedExperts, expert_path, read_frequencies
from lumoe.moe.quantization.gptq import gptq
from lumoe.moe.quantization.nf4 import nf4, nf4_values
from lumoe.moe.quantization.quantize import Recipe, quantize

TOKENS = torch.randint(0, 96, (16, 32), generator=torch.Generator().manual_seed(7))


def correlated_inputs(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn((width, width), generator=generator) * torch.logspace(0, -2, width)
    return torch.randn((tokens, width), generator=generator) @ mixing.t()


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_beats_rounding_on_what_it_was_calibrated_for(bits: int) -> None:
    weight = torch.randn((96, 128), generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(1024, 128)
    matrix = gptq(weight, inputs, bits, 32)
    assert matrix is not None
    held_out = correlated_inputs(2048, 128)[1024:]
    error = (held_out @ (matrix.dequantize() - weight).t()).norm()
    rounded = (held_out @ (nearest(weight, bits, 32).dequantize() - weight).t()).norm()
    assert error < 0.8 * rounded
    assert int(matrix.codes.max()) < 2**bits


def test_gptq_leaves_cuda_synchronize_alone() -> None:
    before = torch.cuda.synchronize
    gptq(torch.randn(16, 32), torch.randn(64, 32), 4, 32)
    assert torch.cuda.synchronize is before


def test_nf4_values_are_the_published_ones() -> None:
    # arXiv 2305.14314, appendix E, to the digits that double precision gives.
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert np.allclose(nf4_values(), published, atol=1e-6)


def test_nf4_rounds_to_the_nearest_value() -> None:
    weight = torch.randn((8, 64), generator=torch.Generator().manual_seed(2))
    codes, scales, values = nf4(weight, 32)
    steps = scales.float().repeat_interleave(32, dim=1)
    best = (weight.unsqueeze(-1) - steps.unsqueeze(-1) * values).abs().argmin(-1)
    assert torch.equal(codes.long(), best)


def test_calibration_walk_routes_as_the_engine_does(model_f32: Path) -> None:
    engine = Engine.load(model_f32, dtype=torch.float32)
    chosen: list[torch.Tensor] = []
    engine.observe(lambda layer, experts: chosen.append(experts))
    engine.logits(TOKENS)
    for inputs, expected in zip(walk(Checkpoint(model_f32), TOKENS), chosen, strict=True):
        assert torch.equal(inputs.chosen, expected)


@pytest.mark.parametrize(("method", "bits"), [("gptq", 4), ("rtn", 3), ("rtn", 8), ("nf4", 4)])
def test_quantised_engine_is_near_the_full_one(model_bf16: Path, tmp_path: Path, method: str, bits: int) -> None:
    table = quantize(Checkpoint(model_bf16), TOKENS, tmp_path, Recipe(method, bits, 32, 64))  # type: ignore[arg-type]
    assert len(table) == 12
    assert table["tokens"].sum() == TOKENS.numel() * 2 * 3
    assert np.allclose(read_frequencies(tmp_path).sum(axis=1), 2)
    # Rounding with one bit fewer doubles the error; 4 bits of normal weights leave about a tenth.
    assert 0 < table["relative_error"].max() < 0.2 * 2 ** (4 - bits) + 0.01
    full = Engine.load(model_bf16, dtype=torch.float32)
    small = Engine.load(model_bf16, tmp_path, Plan.uniform(3, 4, bits), dtype=torch.float32)
    assert small.metrics()["experts_by_bits"] == {bits: 12}
    difference = (small.logits(TOKENS) - full.logits(TOKENS)).norm() / full.logits(TOKENS).norm()
    assert 0 < difference < 1.5 * 2 ** (4 - bits)


def test_stored_bytes_are_what_the_table_says(model_bf16: Path, tmp_path: Path) -> None:
    table = quantize(Checkpoint(model_bf16), TOKENS, tmp_path, Recipe("rtn", 4, 32))
    parameters = 3 * 64 * 128
    assert (table["bytes"] == parameters // 2 + parameters // 32 * 4).all()


def test_resumes_after_an_interruption(model_bf16: Path, tmp_path: Path) -> None:
    checkpoint, recipe = Checkpoint(model_bf16), Recipe("rtn", 4, 32)
    seen: list[str] = []

    def stop(line: str) -> None:
        seen.append(line)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(checkpoint, TOKENS, tmp_path, recipe, progress=stop)
    with pytest.raises(UserError, match=r"manifest.json: no such file"):
        QuantizedExperts(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("layer-*")}
    assert len(made) == 5
    expert_path(tmp_path, 0, 1).write_bytes(b"damaged by the kill")
    quantize(checkpoint, TOKENS, tmp_path, recipe)
    kept = [path for path, changed in made.items() if path.stat().st_mtime_ns == changed]
    assert len(kept) == 4
    whole = quantize(checkpoint, TOKENS, tmp_path.parent / "whole", recipe)
    # A finished folder only has its experts verified; a damaged one of them is made again.
    expert_path(tmp_path, 2, 0).write_bytes(b"damaged later")
    resumed = quantize(checkpoint, TOKENS, tmp_path, recipe)
    assert resumed.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_experts_with_few_tokens_are_named_and_rounded(
    model_bf16: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = TOKENS[:1, :16]
    with caplog.at_level(logging.WARNING):
        table = quantize(Checkpoint(model_bf16), few, tmp_path, Recipe("gptq", 4, 32, least_tokens=9))
    assert (table["method"] == np.where(table["tokens"] < 9, "rtn", "gptq")).all()
    assert {"rtn", "gptq"} == {*table["method"]}
    for row in table[table["method"] == "rtn"].itertuples():
        assert f"layer {row.layer} expert {row.expert}: {row.tokens} calibration tokens" in caplog.text


@pytest.mark.parametrize(
    ("method", "bits", "group", "message"),
    [("awq", 4, 32, "unknown"), ("rtn", 5, 32, "not 5"), ("nf4", 3, 32, "4 bits"), ("rtn", 4, 48, "do not divide")],
)
def test_bad_recipes(model_bf16: Path, tmp_path: Path, method: str, bits: int, group: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantize(Checkpoint(model_bf16), TOKENS, tmp_path / "out", Recipe(method, bits, group))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_experts_of_another_model_are_refused(model_bf16: Path, quantized: dict[int, Path], tmp_path: Path) -> None:
    other = make_model(tmp_path, torch.bfloat16, num_hidden_layers=2)
    with pytest.raises(UserError, match="num_hidden_layers 3, but"):
        Engine.load(other, quantized[4])


def test_missing_and_damaged_experts_are_named(model_bf16: Path, quantized: dict[int, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(quantized[4], tmp_path / "q"))
    plan = Plan.uniform(3, 4, 4)
    path = expert_path(folder, 1, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path}: not a whole"):
        Engine.load(model_bf16, folder, plan)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: the quantised expert is missing"):
        Engine.load(model_bf16, folder, plan)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json: no seal"):
        Engine.load(model_bf16, folder, plan)
