"""Affine codes of a weight matrix: `w = (code − centre) · scale + zero`, one scale and zero for each group of inputs.

With at most 4 bits the centre is 8, as in the int4 layout that torch's kernels multiply; fewer bits use fewer codes of
the same layout. At 8 bits it is 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AffineMatrix:
    """A quantised weight matrix.

    Attributes:
        codes: uint8 `[outputs, inputs]`, below `2**bits`.
        scales, zeros: bfloat16 `[outputs, inputs / group]`.
        bits: bits per code.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros, `bits` bits a code."""
        return self.codes.numel() * self.bits // 8 + 2 * (self.scales.numel() + self.zeros.numel())

    def dequantize(self) -> torch.Tensor:
        """Return the weights that the codes stand for, float32 `[outputs, inputs]`."""
        rows, groups = self.scales.shape
        grouped = self.codes.view(rows, groups, -1).float().sub_(centre(self.bits))
        grouped.mul_(self.scales.float().unsqueeze(-1)).add_(self.zeros.float().unsqueeze(-1))
        return grouped.view(self.codes.shape)


def centre(bits: int) -> int:
    """The code that stands for a group's zero."""
    return 8 if bits <= 4 else 128


def encode(weight: torch.Tensor, scales: torch.Tensor, points: torch.Tensor, bits: int) -> AffineMatrix:
    """Return the codes nearest to `weight` on a grid `scale · (code − point)`.

    Args:
        weight: `[outputs, inputs]`.
        scales, points: `[outputs, inputs / group]`; a point is the code of the value 0.
    """
    rows, groups = scales.shape
    scales = scales.to(torch.bfloat16)
    zeros = (scales.float() * (centre(bits) - points.float())).to(torch.bfloat16)
    steps = scales.float().unsqueeze(-1)
    offsets = weight.float().view(rows, groups, -1) - zeros.float().unsqueeze(-1)
    # Codes are chosen on the rounded grid, the one that the kernels multiply.
    codes = (offsets.div_(steps).round_() + centre(bits)).clamp_(0, 2**bits - 1).to(torch.uint8)
    return AffineMatrix(codes.view(weight.shape), scales, zeros, bits)


def nearest(weight: torch.Tensor, bits: int, group_size: int) -> AffineMatrix:
    """Quantise by rounding to the nearest of `2**bits` evenly spaced values from each group's least to its largest."""
    rows, inputs = weight.shape
    grouped = weight.float().view(rows, inputs // group_size, group_size)
    low, high = grouped.amin(-1).clamp_max_(0), grouped.amax(-1).clamp_min_(0)
    scales = (high - low) / (2**bits - 1)
    scales[scales == 0] = 1.0
    return encode(weight, scales, (-low / scales).round_(), bits)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Store two codes below 16 in a byte, the even column low: uint8 `[outputs, inputs / 2]`."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).view(packed.shape[0], -1)


def looked_up(codes: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the weights float32 `[outputs, inputs]` that codes stand for: `values [16]` times their group's scale."""
    found = values.float()[codes.int()]
    return (found.view(*scales.shape, -1) * scales.float().unsqueeze(-1)).view(found.shape)
