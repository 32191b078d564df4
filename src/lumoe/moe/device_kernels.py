"""torch's int4 product on a device: CPU and CUDA take the same scales and zeros, but codes in orders of their own."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lumoe.moe import kernels
from lumoe.moe.affine import AffineMatrix

# Tiles of 16 inputs that CUDA's kernel reads at once; the most that the inputs are a multiple of.
_INNER_TILES = (8, 4, 2)
_TILE = 16


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
    if device.type == "cpu":
        return kernels.int4_supported(outputs, inputs, group_size)
    whole = outputs % 8 == 0 and inputs % group_size == 0
    return whole and group_size in kernels.GROUPS and inner_tiles(inputs) > 0


def pack_int4(matrix: AffineMatrix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes as `device`'s kernel reads them and `[inputs/group, outputs, 2]` scales and zeros.

    Both lie in host memory. CUDA's packing operator runs on the GPU and takes two codes a byte, the even column high.
    """
    if device.type == "cpu":
        return kernels.pack_int4(matrix)
    codes = matrix.codes.to(device)
    pairs = ((codes[:, ::2] << 4) | codes[:, 1::2]).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, inner_tiles(matrix.codes.shape[1]))
    scales = torch.stack((matrix.scales.t(), matrix.zeros.t()), dim=-1).contiguous()
    return packed.cpu(), scales


def int4_matmul(device: torch.device) -> kernels.Int4Matmul:
    """Return `device`'s product `(hidden, packed, group size, scales and zeros)`, bfloat16."""
    if device.type == "cpu":
        return kernels.int4_matmul
    product: kernels.Int4Matmul = torch.ops.aten._weight_int4pack_mm.default
    return product
