"""Products with quantised weights, by the kernels that torch ships; weights are never expanded on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lumoe.moe.affine import AffineMatrix, centre

GROUPS = (32, 64, 128, 256)
# Rows are packed in blocks of 16, 32 or 64 according to the processor's vector width; this is a multiple of each.
_ROWS_AT_ONCE = 1024

Int4Matmul = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], torch.Tensor]
Int8Matmul = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
int4_matmul: Int4Matmul = torch.ops.aten._weight_int4pack_mm_for_cpu.default
int8_matmul: Int8Matmul = torch.ops.aten._weight_int8pack_mm.default


def int4_supported(outputs: int, inputs: int, group_size: int) -> bool:
    """Whether torch's int4 kernel takes a matrix of these sizes."""
    return outputs % 16 == 0 and group_size in GROUPS and inputs % group_size == 0


def pack_int4(matrix: AffineMatrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed codes (uint8, `inputs/2 · outputs` bytes) and `[inputs/group, outputs, 2]` scales and zeros.

    The order of the packed bytes depends on the processor: they are made at load and never stored for another machine.
    """
    # The packing operator wants 32-bit codes: some rows at a time keep its temporary small.
    codes = matrix.codes
    blocks = []
    for begin in range(0, len(codes), _ROWS_AT_ONCE):
        wide = codes[begin : begin + _ROWS_AT_ONCE].to(torch.int32)
        blocks.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1).flatten())
    pairs = torch.stack((matrix.scales.t(), matrix.zeros.t()), dim=-1).contiguous()
    return torch.cat(blocks).view(matrix.codes.shape[0], -1), pairs


def stack_rows(first: AffineMatrix, second: AffineMatrix) -> AffineMatrix:
    """Put two matrices with the same inputs above each other, to be multiplied at once."""
    return AffineMatrix(
        torch.cat((first.codes, second.codes)),
        torch.cat((first.scales, second.scales)),
        torch.cat((first.zeros, second.zeros)),
        first.bits,
    )


def int8_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to int8 `[outputs, inputs]` with one symmetric bfloat16 scale a row, for `int8_matmul`."""
    scales = (weight.abs().amax(dim=1).float() / (centre(8) - 1)).to(torch.bfloat16)
    scales[scales == 0] = 1.0
    codes = (weight.float() / scales.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales
