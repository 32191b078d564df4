"""Quantised experts compute what their dequantised weights compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe import kernels
from lumoe.moe.affine import AffineMatrix, encode, nearest, pack_nibbles, unpack_nibbles
from lumoe.moe.checkpoint import Checkpoint
from lumoe.moe.experts import ExpertSource
from lumoe.moe.quantized import QuantizedExperts
from lumoe.moe.slow_tier import Buffer, fill


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
    packed, _ = kernels.pack_int4(matrix)
    whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(matrix.codes.to(torch.int32), 1)
    assert torch.equal(packed.flatten(), whole.flatten())


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kernels_equal_the_dequantised_reference(
    model_bf16: Path, quantized: dict[int, Path], tmp_path: Path, bits: int, tokens: int
) -> None:
    checkpoint = Checkpoint(model_bf16)
    folders = [QuantizedExperts(quantized[bits])] if bits in quantized else []
    fast = _expert(ExpertSource(checkpoint, folders, torch.bfloat16, tmp_path), bits)
    exact = _expert(ExpertSource(checkpoint, folders, torch.float32, tmp_path), bits)
    hidden = torch.randn((tokens, 64), generator=torch.Generator().manual_seed(tokens)).bfloat16()
    got, expected = fast(hidden).float(), exact(hidden.float())
    # bfloat16 keeps 8 bits: activations and the products between the matrices are rounded to 2^-9 of their size.
    assert (got - expected).norm() <= 2**-7 * expected.norm()


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
    expert = _expert(ExpertSource(checkpoint, [], torch.bfloat16, tmp_path), 16, layer=2, index=3)
    w1, w2, w3 = checkpoint.expert(2, 3)
    hidden = torch.randn(3, 64).bfloat16()
    expected = functional.linear(functional.silu(functional.linear(hidden, w1)) * functional.linear(hidden, w3), w2)
    assert torch.equal(expert(hidden), expected)


def test_absent_precision_is_refused(model_bf16: Path, tmp_path: Path) -> None:
    source = ExpertSource(Checkpoint(model_bf16), [], torch.bfloat16, tmp_path)
    with pytest.raises(UserError, match="no experts at 4 bits"):
        source.nbytes(4)


def _expert(source: ExpertSource, bits: int, layer: int = 1, index: int = 2):  # type: ignore[no-untyped-def]
    record = source.record(layer, index, bits)
    buffer = Buffer(record.nbytes)
    fill(buffer, record)
    return source.build(layer, index, bits, buffer.tensors(record))
