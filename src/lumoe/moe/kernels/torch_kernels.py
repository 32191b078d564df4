"""Products with quantised weights by the kernels that torch ships; weights are never expanded on the way.

CPU and CUDA take the same scales and zeros, but codes in orders of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from lumoe.moe.kernels.affine import AffineMatrix, centre

CPU = torch.device("cpu")
GROUPS = (32, 64, 128, 256)
# Rows are packed in blocks of 16, 32 or 64 according to the processor's vector width; this is a multiple of each.
_ROWS_AT_ONCE = 1024
# Inputs that torch's int8 kernel takes at once; beyond the last whole ones it reads whatever lies there.
_INT8_INPUTS = 16
# Tiles of 16 inputs that CUDA's kernel reads at once; the most that the inputs are a multiple of.
_INNER_TILES = (8, 4, 2)
_TILE = 16

Int4Matmul = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], torch.Tensor]


class Packed(NamedTuple):
    """Type and shape of a packed matrix; two codes a byte whatever the type."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def inner_tiles(inputs: int) -> int:
    """Return the layout parameter of CUDA's int4 kernel for a matrix with so many inputs; 0 where there is none."""
    return next((tiles for tiles in _INNER_TILES if inputs % (tiles * _TILE) == 0), 0)


def int4_packed(device: torch.device, outputs: int, inputs: int) -> Packed:
    """Return what `pack_int4` makes of an `[outputs, inputs]` matrix for `device`."""
    if device.type == "cpu":
        return Packed(torch.uint8, (outputs, inputs // 2))
    tiles = inner_tiles(inputs)
    return Packed(torch.int32, (outputs // 8, inputs // (tiles * _TILE), 32, tiles // 2))


def int4_supported(device: torch.device, outputs: int, inputs: int, group_size: int) -> bool:
    """Whether the device's int4 kernel takes a matrix of these sizes."""
    if group_size not in GROUPS or inputs % group_size:
        return False
    return outputs % 16 == 0 if device.type == "cpu" else outputs % 8 == 0 and inner_tiles(inputs) > 0


def pack_int4(matrix: AffineMatrix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes as `device`'s kernel reads them and `[inputs/group, outputs, 2]` scales and zeros.

    Both lie in host memory. The order of the packed bytes depends on the device, and on the CPU on the processor: they
    are made at load and never stored for another machine.
    """
    packed = _pack_on_cpu(matrix.codes) if device.type == "cpu" else _pack_on_gpu(matrix.codes, device)
    return packed, torch.stack((matrix.scales.t(), matrix.zeros.t()), dim=-1).contiguous()


def _pack_on_cpu(codes: torch.Tensor) -> torch.Tensor:
    # The packing operator wants 32-bit codes: some rows at a time keep its temporary small.
    blocks = []
    for begin in range(0, len(codes), _ROWS_AT_ONCE):
        wide = codes[begin : begin + _ROWS_AT_ONCE].to(torch.int32)
        blocks.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(wide, 1).flatten())
    return torch.cat(blocks).view(codes.shape[0], -1)


def _pack_on_gpu(codes: torch.Tensor, device: torch.device) -> torch.Tensor:
    # CUDA's packing operator runs on the GPU and takes two codes a byte, the even column high.
    there = codes.to(device)
    pairs = ((there[:, ::2] << 4) | there[:, 1::2]).contiguous()
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, inner_tiles(codes.shape[1]))
    return packed.cpu()


def int4_matmul(device: torch.device) -> Int4Matmul:
    """Return `device`'s product `(hidden, packed, group size, scales and zeros)`, bfloat16."""
    on_cpu: Int4Matmul = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    on_gpu: Int4Matmul = torch.ops.aten._weight_int4pack_mm.default
    return on_cpu if device.type == "cpu" else on_gpu


def stack_rows(first: AffineMatrix, second: AffineMatrix) -> AffineMatrix:
    """Put two matrices with the same inputs above each other, to be multiplied at once."""
    return AffineMatrix(
        torch.cat((first.codes, second.codes)),
        torch.cat((first.scales, second.scales)),
        torch.cat((first.zeros, second.zeros)),
        first.bits,
    )


def int8_inputs(inputs: int) -> int:
    """Return how many inputs a matrix of `int8_matmul` has in memory, those that are zeros among them."""
    return -(-inputs // _INT8_INPUTS) * _INT8_INPUTS


def int8_packed(codes: torch.Tensor) -> torch.Tensor:
    """Fill codes int8 `[outputs, inputs]` up with zeros to the inputs that `int8_matmul` takes."""
    return functional.pad(codes, (0, int8_inputs(codes.shape[1]) - codes.shape[1]))


def int8_matmul(hidden: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply bfloat16 `hidden [tokens, inputs]` by the transpose of what `int8_packed` returned."""
    missing = packed.shape[1] - hidden.shape[1]
    found: torch.Tensor = torch.ops.aten._weight_int8pack_mm.default(
        functional.pad(hidden, (0, missing)) if missing else hidden, packed, scales
    )
    return found


def int8_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to int8 `[outputs, inputs]` with one symmetric bfloat16 scale a row, for `int8_packed`."""
    scales = (weight.abs().amax(dim=1).float() / (centre(8) - 1)).to(torch.bfloat16)
    scales[scales == 0] = 1.0
    codes = (weight.float() / scales.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales
