"""A quantiser of the user's own is found, called for w1, w3, w2 with their inputs, and held to what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lumoe.errors import UserError
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.quantization.custom import load_quantizer
from lumoe.moe.quantization.quantize import Recipe, quantize_matrices

CODE = """
from lumoe.moe.kernels.affine import nearest
seen = []
def rounded(weight, inputs, bits, group_size):
    seen.append((tuple(weight.shape), tuple(inputs.shape)))
    return nearest(weight, bits, group_size)
def finer(weight, inputs, bits, group_size):
    return nearest(weight, bits, group_size // 2)
def declines(weight, inputs, bits, group_size):
    return None
def wrong(weight, inputs, bits, group_size):
    return weight
def raises(weight, inputs, bits, group_size):
    return weight.view(3, 5, 7)
"""
FAULT = CODE[: CODE.index("weight.view")].count("\n") + 1


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def expert() -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w1, w3 = (torch.randn(48, 32, generator=generator) for _ in range(2))
    w2 = torch.randn(32, 48, generator=generator)
    return [w1, w2, w3], torch.randn(7, 32, generator=generator)


def test_it_is_called_with_each_matrix_and_its_inputs(module: str) -> None:
    weights, hidden = expert()
    method = f"{module}:rounded"
    _, approximate, used = quantize_matrices(weights, hidden, Recipe(method, 4, 16), method)
    assert used == method
    for weight, got in zip(weights, approximate, strict=True):
        assert torch.equal(got, nearest(weight, 4, 16).dequantize())
    seen = __import__(module).seen
    assert seen == [((48, 32), (7, 32)), ((48, 32), (7, 32)), ((32, 48), (7, 48))]


def test_one_that_declines_is_rounded_to_nearest(module: str) -> None:
    weights, hidden = expert()
    method = f"{module}:declines"
    _, approximate, used = quantize_matrices(weights, hidden, Recipe(method, 4, 16), method)
    assert used == "rtn"
    assert torch.equal(approximate[1], nearest(weights[1], 4, 16).dequantize())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("finer", "groups of 8"),
        ("wrong", "returned a Tensor"),
        ("absent", "no function 'absent'"),
        ("raises", rf"raises: RuntimeError in line {FAULT} of .*own_.*\(shape '\[3, 5, 7\]' is invalid"),
    ],
)
def test_what_it_promises_is_checked(module: str, name: str, words: str) -> None:
    weights, hidden = expert()
    with pytest.raises(UserError, match=words):
        load_quantizer(f"{module}:{name}")(weights[0], hidden, 4, 16)


def test_an_absent_module_and_an_unknown_method_are_named() -> None:
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        load_quantizer("no_such_module:f")
    with pytest.raises(UserError, match="MODULE:FUNCTION"):
        Recipe("gptk")
