"""Widths that groups, bytes and vectors do not divide: they work from quantising to logits, or are refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_mixtral import make_model
from torch.nn import functional
from transformers import MixtralForCausalLM

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, open_model
from lumoe.moe.offload.file_experts import ExpertSource
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.offload.storage import PageBuffer
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize

TOKENS = torch.randint(0, 96, (4, 32), generator=torch.Generator().manual_seed(7))
OWN = """
from lumoe.moe.kernels.affine import nearest
def f(weight, inputs, bits, group):
    return nearest(weight, bits, group)
"""


def model_of(folder: Path, hidden: int, wide: int) -> Path:
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "head_dim": 16, "num_hidden_layers": 2}
    return make_model(folder, torch.bfloat16, **sizes)


def outputs(source: ExpertSource, bits: int, hidden: torch.Tensor) -> torch.Tensor:
    """What expert 3 of layer 1 makes of `hidden`: all rows at once, and each alone."""
    record = source.record(1, 3, bits)
    buffer = PageBuffer(record.nbytes)
    FileTier().load(buffer, record)
    expert = source.build(1, 3, bits, buffer.tensors(record))
    return torch.stack((expert(hidden), torch.cat([expert(row) for row in hidden.split(1)]))).float()


def gated(hidden: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> torch.Tensor:
    hidden, w1, w2, w3 = (value.double() for value in (hidden, w1, w2, w3))
    return (functional.silu(hidden @ w1.t()) * (hidden @ w3.t())) @ w2.t()


@pytest.mark.parametrize(("hidden", "wide", "group"), [(60, 36, 12), (72, 40, 8), (64, 100, 4), (96, 160, 32)])
@pytest.mark.parametrize(
    ("method", "bits"), [("rtn", 2), ("rtn", 4), ("rtn", 8), ("gptq", 4), ("nf4", 4), ("own_widths:f", 3)]
)
def test_even_widths_work_from_quantising_to_logits(
    hidden: int, wide: int, group: int, method: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_widths.py").write_text(OWN)
    model, folder = model_of(tmp_path / "model", hidden, wide), tmp_path / "q"
    table = quantize(Checkpoint(model), TOKENS, folder, Recipe(method, bits, group, 1))
    assert {*table["method"]} == {method}
    experts, reference = QuantizedExperts(folder), MixtralForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        for layer, expert, name in product(range(2), range(4), ("w1", "w2", "w3")):
            weight = getattr(reference.model.layers[layer].block_sparse_moe.experts[expert], name).weight
            weight.copy_(experts.dequantized(layer, expert, name))
        expected = reference(TOKENS).logits
    found = Engine.load(model, folder, Plan.uniform(2, 4, bits), dtype=torch.float32).logits(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    states = torch.randn((5, hidden), generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = gated(states, *(experts.dequantized(1, 3, name) for name in ("w1", "w2", "w3")))
    for native in (True, False):
        source = ExpertSource(Checkpoint(model), [experts], torch.bfloat16, tmp_path, native)
        assert source.record(1, 3, bits).nbytes == source.nbytes(bits)
        for made in outputs(source, bits, states):
            assert (made - exact).norm() < 2**-6 * exact.norm()


@pytest.mark.parametrize(("hidden", "wide"), [(36, 33), (45, 27), (66, 34), (72, 100), (64, 65)])
def test_eight_bits_made_of_any_widths_are_near_the_weights(hidden: int, wide: int, tmp_path: Path) -> None:
    """torch's kernel for them reads beyond rows that no whole vectors fill."""
    model = model_of(tmp_path / "model", hidden, wide)
    checkpoint = Checkpoint(model)
    source = ExpertSource(checkpoint, [], torch.bfloat16, tmp_path)
    assert source.kernel(8) == "int8"
    assert source.record(1, 3, 8).nbytes == source.nbytes(8)
    states = torch.randn((5, hidden), generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = gated(states, *checkpoint.expert(1, 3))
    for bits, near in ((16, 2**-6), (8, 0.02)):
        for made in outputs(source, bits, states):
            assert (made - exact).norm() < near * exact.norm()


@pytest.mark.parametrize(
    ("hidden", "wide", "recipe", "words"),
    [
        (36, 33, Recipe("rtn", 4, 3), "two codes of 4 bits share a byte, and the expert's width 33 is odd"),
        (45, 36, Recipe("gptq", 3, 9), "two codes of 3 bits share a byte, and the expert's width 45 is odd"),
        (64, 65, Recipe("nf4", 4, 1), "width 65 is odd; quantise to 8 bits"),
        (64, 100, Recipe("rtn", 4, 32), "groups of 32 do not divide the expert's width 100; the largest .* of 4"),
        (96, 480, Recipe("rtn", 8, 64), "groups of 64 do not divide the expert's width 96; the largest .* of 96"),
    ],
)
def test_widths_that_do_not_work_are_refused_in_a_sentence(
    hidden: int, wide: int, recipe: Recipe, words: str, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model", hidden, wide)
    with pytest.raises(UserError, match=f"{model}: .*{words}"):
        quantize(Checkpoint(model), TOKENS, tmp_path / "q", recipe)
    assert not (tmp_path / "q").exists()


def test_odd_widths_work_at_8_bits(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", 45, 27)
    quantize(Checkpoint(model), TOKENS, tmp_path / "q", Recipe("rtn", 8, 9))
    exact = Engine.load(model, dtype=torch.float32).logits(TOKENS)
    found = Engine.load(model, tmp_path / "q", Plan.uniform(2, 4, 8), dtype=torch.float32).logits(TOKENS)
    assert 0 < (found - exact).norm() < 0.02 * exact.norm()


def test_projections_that_groups_do_not_divide_are_refused_in_a_sentence(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", 72, 40)
    with pytest.raises(UserError, match="a matrix of 72 inputs cannot be rounded to 4 bits in groups of 64"):
        open_model(model, None, EngineConfig(non_expert_bits=4))
