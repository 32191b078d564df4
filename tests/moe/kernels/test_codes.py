"""Products from the codes of ggml's formats are those of the values that the package `gguf` decodes."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch
from torch.nn import functional

from lumoe import compiled
from lumoe.moe.architectures.architecture import Activation
from lumoe.moe.kernels import codes as kernels
from lumoe.moe.kernels import library
from lumoe.moe.kernels.blocks import FORMATS
from lumoe.moe.kernels.codes import CodedExpert, CodedMatrix, expanded, finite
from lumoe.moe.model.activation import Clamped

# Bytes of a block that hold its float16 scales.
SCALES = {
    "Q4_0": (0, 2), "Q4_1": (0, 4), "Q5_0": (0, 2), "Q5_1": (0, 4), "Q8_0": (0, 2), "IQ4_NL": (0, 2), "Q2_K": (80, 84),
    "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210), "IQ4_XS": (0, 2),
}  # fmt: skip


def random_codes(kind: str, rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Any bytes, but scales as a trained model has them."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (rows, inputs // FORMATS[kind].weights, FORMATS[kind].nbytes), dtype=np.uint8)
    if kind in SCALES:
        begin, end = SCALES[kind]
        scales = (0.01 * draw.standard_normal((*blocks.shape[:2], (end - begin) // 2))).astype(np.float16)
        blocks[:, :, begin:end] = scales.view(np.uint8)
    else:
        blocks[:, :, 0] = draw.integers(110, 124, blocks.shape[:2])
    return torch.from_numpy(blocks.reshape(rows, -1))


@pytest.fixture(params=["", "avx2", "0"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels built for this processor, those that every processor with AVX2 gets, and none."""
    monkeypatch.setenv(compiled.CHOICE, request.param)
    library.codes_library.cache_clear()
    if library.codes_library() is None and request.param != "0":
        pytest.skip("needs AVX2 and a C++ compiler")
    yield request.param
    library.codes_library.cache_clear()


def test_formats_are_those_of_the_package() -> None:
    sizes = {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] for kind in FORMATS}
    assert sizes == {kind: (form.weights, form.nbytes) for kind, form in FORMATS.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_expanded_rows_are_the_decoded_values(kind: str, instructions: str) -> None:
    codes = random_codes(kind, 37, 768)
    exact = gguf.quants.dequantize(codes.numpy(), gguf.GGMLQuantizationType[kind])
    matrix = CodedMatrix(codes, kind)
    assert (matrix.outputs, matrix.inputs, matrix.nbytes) == (37, 768, codes.numel())
    assert torch.equal(matrix.expand(3, 30), torch.from_numpy(exact[3:33]).bfloat16())
    wanted = torch.tensor([[5, 36], [0, 5]])
    assert torch.equal(matrix.rows(wanted), torch.from_numpy(exact).bfloat16()[wanted])


@pytest.mark.parametrize("kind", FORMATS)
def test_products_equal_float64(kind: str, instructions: str) -> None:
    codes = random_codes(kind, 37, 768)
    matrix, exact = CodedMatrix(codes, kind), expanded(codes, kind).double()
    hidden = torch.randn((2, 7, 768), generator=torch.Generator().manual_seed(1)).bfloat16()
    expected, found = hidden.double() @ exact.t(), matrix(hidden)
    assert found.shape == (2, 7, 37)
    # Fewer tokens than are expanded for a fast product.
    # The kernels round their output alone; without them the weights are rounded to bfloat16 as well.
    size = hidden.double().norm(dim=-1, keepdim=True) * exact.norm(dim=1)
    slack = 2**-8 if instructions == "0" else 2**-13
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + slack * size).all()
    if instructions != "0":
        assert torch.equal(torch.cat([matrix(row) for row in hidden[0].split(1)]), matrix(hidden[0]))


@pytest.mark.parametrize("kinds", [("Q4_0", "Q8_0", "Q4_0"), ("Q4_K", "Q6_K", "Q4_K"), ("MXFP4", "MXFP4", "MXFP4")])
def test_an_expert_is_its_three_products(kinds: tuple[str, str, str], instructions: str) -> None:
    names = dict(zip(("w1", "w2", "w3"), kinds, strict=True))
    shapes = {"w1": (256, 512), "w2": (512, 256), "w3": (256, 512)}
    tensors = {name: random_codes(kind, *shapes[name], seed) for seed, (name, kind) in enumerate(names.items())}
    w1, w2, w3 = (expanded(tensors[name], kind).double() for name, kind in names.items())
    expert = CodedExpert(tensors, names)
    for tokens in (1, 5, 40):
        hidden = torch.randn((tokens, 512), generator=torch.Generator().manual_seed(tokens)).bfloat16()
        expected = (functional.silu(hidden.double() @ w1.t()) * (hidden.double() @ w3.t())) @ w2.t()
        assert (expert(hidden).double() - expected).norm() < 2**-7 * expected.norm()
        doubled = expert(hidden, lambda gate, up: 2 * functional.silu(gate) * up).double()
        assert (doubled - 2 * expected).norm() < 2**-6 * expected.norm()


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0"])
def test_a_clamped_gate_with_biases_is_what_torch_computes(kind: str, instructions: str) -> None:
    shapes = {"w1": (96, 256), "w2": (256, 96), "w3": (96, 256)}
    tensors = {name: random_codes(kind, *shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    w1, w2, w3 = (expanded(tensors[name], kind).double() for name in shapes)
    draw = torch.Generator().manual_seed(3)
    gate_bias, up_bias = (torch.randn(96, generator=draw).bfloat16() for _ in range(2))
    hidden = torch.randn((5, 256), generator=draw).bfloat16()
    activation = Clamped(Activation(limit=1.5, alpha=1.702, offset=1.0), gate_bias, up_bias)
    gate = (hidden.double() @ w1.t() + gate_bias).clamp(max=1.5)
    up = (hidden.double() @ w3.t() + up_bias).clamp(-1.5, 1.5)
    assert (gate == 1.5).any()
    assert (up == -1.5).any()
    expected = ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ w2.t()
    found = CodedExpert(tensors, dict.fromkeys(shapes, kind))(hidden, activation, activation.gate)
    assert (found.double() - expected).norm() < 2**-7 * expected.norm()


def test_experts_together_are_the_same_bits_as_one_by_one(instructions: str) -> None:
    if instructions == "0":
        pytest.skip("one by one without the kernels")
    shapes, experts = {"w1": (256, 512), "w2": (512, 256), "w3": (256, 512)}, []
    for seed, kinds in enumerate([("Q4_0", "Q8_0", "Q4_0"), ("Q4_K", "Q6_K", "Q4_K"), ("Q4_0", "Q4_0", "Q5_1")]):
        named = dict(zip(shapes, kinds, strict=True))
        experts.append(CodedExpert({n: random_codes(kind, *shapes[n], seed) for n, kind in named.items()}, named))
    ends = [0, 1, 7, 12]
    hidden = torch.randn((12, 512), generator=torch.Generator().manual_seed(1)).bfloat16()
    output = torch.empty_like(hidden)
    kernels.run_together(experts, ends, hidden, output)
    parts = hidden.split([1, 6, 5])
    assert torch.equal(output, torch.cat([one(part) for one, part in zip(experts, parts, strict=True)]))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_scale_that_is_no_number_is_found(kind: str) -> None:
    codes = random_codes(kind, 4, 512)
    assert finite(codes, kind)
    at = FORMATS[kind].nbytes + SCALES.get(kind, (0, 1))[1]
    codes[2, at - 2 : at] = torch.tensor([0xFF, 0x7E], dtype=torch.uint8)
    if kind == "MXFP4":
        codes[2, FORMATS[kind].nbytes] = 255
    assert not finite(codes, kind)


def test_many_tokens_are_multiplied_by_expanded_pieces_where_that_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    if library.codes_library() is None:
        pytest.skip("needs AVX2 and a C++ compiler")
    codes, hidden = random_codes("Q4_K", 4100, 256), torch.randn(kernels.MANY_TOKENS, 256).bfloat16()
    monkeypatch.setattr(kernels, "expands", lambda: True)
    expected = functional.linear(hidden, expanded(codes, "Q4_K").bfloat16())
    torch.testing.assert_close(CodedMatrix(codes, "Q4_K")(hidden), expected)
