"""Quantised experts compute what their dequantised weights compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lumoe import compiled
from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.kernels import dense, native
from lumoe.moe.kernels import library as native_library
from lumoe.moe.kernels import torch_kernels as kernels
from lumoe.moe.kernels.affine import AffineMatrix, centre, encode, nearest, pack_nibbles, unpack_nibbles
from lumoe.moe.offload.file_experts import ExpertSource
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.offload.storage import PageBuffer
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize


def test_encode_reproduces_a_grid_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand((32, 4), generator=generator).add(0.5).bfloat16()
    codes = torch.randint(0, 16, (32, 128), generator=generator, dtype=torch.uint8)
    exact = AffineMatrix(codes, scales, torch.zeros_like(scales), 4)
    again = encode(exact.dequantize(), scales, torch.full_like(scales, 8.0), 4)
    assert torch.equal(again.codes, codes)


@given(bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([32, 64]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_rounding_error_is_at_most_half_a_step(bits: int, group: int, seed: int) -> None:
    weight = torch.randn((16, 128), generator=torch.Generator().manual_seed(seed))
    matrix = nearest(weight, bits, group)
    steps = matrix.scales.float().repeat_interleave(group, dim=1)
    # Scale and zero are rounded to 8 bits of mantissa; the zero can move by that share of the range.
    slack = matrix.zeros.float().abs().repeat_interleave(group, dim=1) * 2**-8 + steps * 2**bits * 2**-8
    assert ((matrix.dequantize() - weight).abs() <= steps / 2 + slack).all()
    assert int(matrix.codes.max()) < 2**bits


@given(rows=st.integers(1, 5), pairs=st.integers(1, 9), seed=st.integers(0, 9))
def test_nibbles_round_trip(rows: int, pairs: int, seed: int) -> None:
    codes = torch.randint(0, 16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_packing_in_blocks_equals_packing_at_once() -> None:
    matrix = nearest(torch.randn(2048 + 64, 64), 4, 32)
    packed, _ = kernels.pack_int4(matrix, kernels.CPU)
    whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(matrix.codes.to(torch.int32), 1)
    assert torch.equal(packed.flatten(), whole.flatten())


def random_experts(folder: Path, model: Path, bits: int, group: int) -> QuantizedExperts:
    quantize(Checkpoint(model), torch.zeros((1, 16), dtype=torch.int64), folder, Recipe("rtn", bits, group))
    return QuantizedExperts(folder)


@pytest.mark.parametrize("use_native", [True, False])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kernels_equal_the_dequantised_reference(
    model_bf16: Path, tmp_path: Path, bits: int, group: int, use_native: bool
) -> None:
    checkpoint = Checkpoint(model_bf16)
    folders = [random_experts(tmp_path, model_bf16, bits, group)]
    source = ExpertSource(checkpoint, folders, torch.bfloat16, tmp_path, use_native)
    fast, exact = _expert(source, bits), _expert(ExpertSource(checkpoint, folders, torch.float32, tmp_path), bits)
    for tokens in (1, 2, 5, 16, 33):
        hidden = torch.randn((tokens, 64), generator=torch.Generator().manual_seed(tokens)).bfloat16()
        got, expected = fast(hidden).float(), exact(hidden.float())
        # bfloat16 keeps 8 bits: activations and the products between the matrices are rounded to 2^-9 of their size.
        assert (got - expected).norm() <= 2**-7 * expected.norm()


@pytest.fixture(params=["", "avx2"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels built for this processor, and those that every processor with AVX2 gets."""
    monkeypatch.setenv(compiled.CHOICE, request.param)
    native_library.library.cache_clear()
    if native_library.library() is None:
        pytest.skip("needs AVX2 and a C++ compiler")
    yield request.param
    native_library.library.cache_clear()


@pytest.mark.parametrize("bits", native.BITS)
def test_native_kernel_rounds_its_output_alone(instructions: str, model_bf16: Path, tmp_path: Path, bits: int) -> None:
    checkpoint, folder = Checkpoint(model_bf16), random_experts(tmp_path, model_bf16, bits, 64)
    source = ExpertSource(checkpoint, [folder], torch.bfloat16, tmp_path)
    assert source.kernel(bits) == "native"
    exact = _expert(ExpertSource(checkpoint, [folder], torch.float32, tmp_path), bits)
    hidden = torch.randn((7, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = exact(hidden.float())
    error = (_expert(source, bits)(hidden).float() - expected).abs()
    # One step of bfloat16, and 16-bit activations that add less.
    assert (error <= expected.abs() * 2**-8 + expected.abs().mean() * 2**-10).all()


@pytest.mark.parametrize("bits", native.BITS)
def test_native_kernel_gives_a_token_the_same_bits_alone_and_in_company(
    instructions: str, model_bf16: Path, tmp_path: Path, bits: int
) -> None:
    folder = random_experts(tmp_path, model_bf16, bits, 64)
    expert = _expert(ExpertSource(Checkpoint(model_bf16), [folder], torch.bfloat16, tmp_path), bits)
    hidden = torch.randn((9, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(expert(hidden), torch.cat([expert(row) for row in hidden.split(1)]))


@pytest.mark.parametrize(("method", "bits", "group"), [("rtn", 8, 16), ("nf4", 4, 32), ("rtn", 4, 16), ("rtn", 3, 8)])
def test_codes_without_a_kernel_take_their_own_memory_and_compute_the_same(
    model_bf16: Path, tmp_path: Path, method: str, bits: int, group: int
) -> None:
    checkpoint = Checkpoint(model_bf16)
    quantize(checkpoint, torch.arange(64).view(2, 32), tmp_path / "made", Recipe(method, bits, group))
    folder = QuantizedExperts(tmp_path / "made")
    source = ExpertSource(checkpoint, [folder], torch.bfloat16, tmp_path)
    assert source.kernel(bits) == "expanded"
    source.check_savings()
    stored = checkpoint.architecture.expert_parameters * (max(bits, 4) / 8 + (2 if method == "nf4" else 4) / group)
    assert stored <= source.nbytes(bits) < stored + 4096 + 8 * 64 + 3 * 64
    exact = _expert(ExpertSource(checkpoint, [folder], torch.float32, tmp_path), bits)
    hidden = torch.randn((5, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = exact(hidden.float())
    assert float((_expert(source, bits)(hidden).float() - expected).norm() / expected.norm()) < 0.01


def test_codes_that_take_as_much_as_16_bits_are_refused(model_bf16: Path, tmp_path: Path) -> None:
    quantize(Checkpoint(model_bf16), torch.arange(64).view(2, 32), tmp_path / "made", Recipe("rtn", 4, 2))
    with pytest.raises(UserError, match=r"takes \d+ bytes at 4 bits in groups of 2, \d+ at 16 bits"):
        Engine.load(model_bf16, tmp_path / "made")
    assert Engine.load(model_bf16, tmp_path / "made", dtype=torch.float32).plan.resident.all()


@pytest.mark.parametrize("switch", [{"LUMOE_NATIVE": "0"}, {"CXX": "no-such-compiler"}])
def test_without_the_native_kernel_torchs_is_used(
    model_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: dict[str, str]
) -> None:
    for name, value in switch.items():
        monkeypatch.setenv(name, value)
    native_library.library.cache_clear()
    try:
        folder = random_experts(tmp_path, model_bf16, 4, 64)
        assert ExpertSource(Checkpoint(model_bf16), [folder], torch.bfloat16, tmp_path).kernel(4) == "int4"
    finally:
        native_library.library.cache_clear()


@pytest.mark.parametrize("bits", native.BITS)
def test_experts_take_the_memory_of_their_bits(instructions: str, model_bf16: Path, tmp_path: Path, bits: int) -> None:
    folder = random_experts(tmp_path, model_bf16, bits, 64)
    source = ExpertSource(Checkpoint(model_bf16), [folder], torch.bfloat16, tmp_path)
    weights = Checkpoint(model_bf16).architecture.expert_parameters
    assert weights * (bits + 32 / 64) / 8 <= source.nbytes(bits) < weights * (bits + 32 / 64) / 8 + 4096


@pytest.mark.parametrize(("bits", "group"), [(4, 4352), (3, 8192), (2, 16384), (8, 256)])
def test_sums_of_the_largest_groups_do_not_overflow(instructions: str, bits: int, group: int) -> None:
    assert native.groups_supported(group, bits)
    assert not native.groups_supported(2 * group, bits)
    largest = torch.full((16, group), 2**bits - 1, dtype=torch.uint8)
    one, none = torch.ones((16, 1), dtype=torch.bfloat16), torch.zeros((16, 1), dtype=torch.bfloat16)
    matrix = native.BandedMatrix(*native.banded(AffineMatrix(largest, one, none, bits)), bits=bits)
    expected = group * (2**bits - 1 - centre(bits))
    got = matrix(torch.ones((3, group), dtype=torch.bfloat16)).float()
    assert got == pytest.approx(torch.full((3, 16), float(expected)), rel=2**-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_bytes_are_known_before_an_expert_is_laid_out(
    model_bf16: Path, quantized: dict[int, Path], tmp_path: Path, bits: int, dtype: torch.dtype
) -> None:
    source = ExpertSource(Checkpoint(model_bf16), [QuantizedExperts(p) for p in quantized.values()], dtype, tmp_path)
    sizes = [source.record(layer, expert, bits).nbytes for layer in range(3) for expert in range(4)]
    assert max(sizes) == source.nbytes(bits)


def test_sixteen_bits_are_the_checkpoints_own_bytes(model_bf16: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(model_bf16)
    expert = _expert(ExpertSource(checkpoint, [], torch.bfloat16, tmp_path, False), 16, layer=2, index=3)
    w1, w2, w3 = checkpoint.expert(2, 3)
    hidden = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = functional.linear(functional.silu(functional.linear(hidden, w1)) * functional.linear(hidden, w3), w2)
    assert torch.equal(expert(hidden), expected)
    # A single token runs on a kernel that sums in another order.
    assert close_in_bfloat16(expert(hidden[:1]), expected[:1])


@pytest.mark.parametrize("bits", native.BITS)
@pytest.mark.parametrize("tokens", [1, 3, 4, 8])
def test_native_products_equal_float64(instructions: str, tokens: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn((70, 192), generator=generator).bfloat16()
    hidden = torch.randn((tokens, 192), generator=generator).bfloat16()
    single = dense.linear16(hidden[:1], weight)
    assert close_in_bfloat16(single, hidden[:1].double() @ weight.double().t())
    rounded = nearest(weight, bits, 64)
    matrix = native.BandedMatrix(*native.banded(rounded), bits=bits, outputs=len(weight))
    assert close_in_bfloat16(matrix(hidden), hidden.double() @ rounded.dequantize().double().t())
    assert matrix.nbytes == 80 * 192 * bits // 8 + 2 * 2 * 80 * 3  # whole bands of 16 outputs


@pytest.mark.parametrize("bits", native.BITS)
@pytest.mark.parametrize("group", [32, 64, 192])
def test_native_products_are_the_same_bits_on_every_processor(
    monkeypatch: pytest.MonkeyPatch, group: int, bits: int
) -> None:
    generator = torch.Generator().manual_seed(group)
    rounded = nearest(torch.randn((70, 384), generator=generator).bfloat16(), bits, group)
    hidden = torch.randn((21, 384), generator=generator).bfloat16()
    found = []
    for choice in ("", "avx2"):
        monkeypatch.setenv(compiled.CHOICE, choice)
        native_library.library.cache_clear()
        if native_library.library() is None:
            pytest.skip("needs AVX2 and a C++ compiler")
        matrix = native.BandedMatrix(*native.banded(rounded), bits=rounded.bits, outputs=70)
        found += [matrix(hidden), torch.cat([matrix(part) for part in hidden.split([1, 2, 3, 4, 5, 6])])]
    native_library.library.cache_clear()
    assert all(torch.equal(each, found[0]) for each in found[1:])


def test_experts_together_are_the_same_bits_as_one_by_one(instructions: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def expert(bits: int, group: int) -> native.BandedExpert:
        tensors = {}
        for name, shape in (("w13", (128, 192)), ("w2", (192, 64))):
            parts = native.banded(nearest(torch.randn(shape, generator=generator).bfloat16(), bits, group))
            tensors |= {name + part: tensor for part, tensor in zip(native.PARTS, parts, strict=True)}
        return native.BandedExpert(tensors, bits)

    experts, ends = [expert(4, 64), expert(3, 64), expert(8, 32), expert(2, 32)], [0, 1, 9, 12, 17]
    hidden = torch.randn((17, 192), generator=generator).bfloat16()
    output = torch.empty_like(hidden)
    native.run_together(experts, ends, hidden, output)
    parts = hidden.split([1, 8, 3, 5])
    assert torch.equal(output, torch.cat([one(part) for one, part in zip(experts, parts, strict=True)]))


@pytest.mark.parametrize("bits", native.BITS)
def test_expanded_pieces_are_the_dequantised_weights(bits: int) -> None:
    library = native_library.library()
    if library is None or not library.lumoe_expands():
        pytest.skip("needs AVX-512 with VNNI and BF16, and a C++ compiler")
    weight = torch.randn((40, 192), generator=torch.Generator().manual_seed(0))
    rounded = nearest(weight, bits, 64)
    matrix = native.BandedMatrix(*native.banded(rounded), bits=bits, outputs=len(weight))
    piece = matrix.expand(16, 20, torch.empty(20 * 192, dtype=torch.bfloat16))
    assert torch.equal(piece, rounded.dequantize()[16:36].bfloat16())


def close_in_bfloat16(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether values differ by one step of bfloat16, or by a small share of their mean size where terms cancel."""
    error = (got.double() - expected.double()).abs()
    return bool((error <= expected.double().abs() * 2**-7 + expected.double().abs().mean() * 2**-8).all())


def test_absent_precision_is_refused(model_bf16: Path, tmp_path: Path) -> None:
    source = ExpertSource(Checkpoint(model_bf16), [], torch.bfloat16, tmp_path)
    with pytest.raises(UserError, match="no experts at 4 bits"):
        source.nbytes(4)


def _expert(source: ExpertSource, bits: int, layer: int = 1, index: int = 2):  # type: ignore[no-untyped-def]
    record = source.record(layer, index, bits)
    buffer = PageBuffer(record.nbytes)
    FileTier().load(buffer, record)
    return source.build(layer, index, bits, buffer.tensors(record))
