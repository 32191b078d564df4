"""Matrices and experts that run on this package's own kernels (`native_library`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from lumoe.moe.kernels.affine import AffineMatrix
from lumoe.moe.kernels.library import expands, library

BLOCK = 64
# From this many tokens on, int4 weights are expanded piece by piece for torch's bfloat16 product, where that is fast.
MANY_TOKENS = 16
PARTS = ("", "_scales", "_zeros")
Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_PIECE_BYTES = 4 << 20  # of expanded weights: they stay in the processor's cache


def kernels() -> ctypes.CDLL:
    """Return the compiled kernels, which `supported` has found to be there."""
    found = library()
    assert found is not None
    return found


def supported(*widths: int) -> bool:
    """Whether the kernels are there and take matrices of these widths and group sizes."""
    return all(width % BLOCK == 0 for width in widths) and library() is not None


def interleave(matrix: AffineMatrix) -> torch.Tensor:
    """Lay codes out as the kernels read them: uint8 `[outputs, inputs / 2]`, see `experts.cpp`."""
    rows, inputs = matrix.codes.shape
    quarters = matrix.codes.view(rows, inputs // BLOCK, 4, BLOCK // 4)
    low, high = quarters[:, :, 0] | (quarters[:, :, 1] << 4), quarters[:, :, 2] | (quarters[:, :, 3] << 4)
    return torch.stack((low, high), dim=-1).view(rows, inputs // 2)


def linear16(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply one token `[..., inputs]` by the transposed bfloat16 `weight` `[outputs, inputs]`."""
    outputs, inputs = weight.shape
    result = torch.empty((*hidden.shape[:-1], outputs), dtype=torch.bfloat16)
    hidden = hidden.contiguous()
    kernels().lumoe_linear16(hidden.data_ptr(), result.data_ptr(), outputs, inputs, weight.data_ptr())
    return result


class Int4Matrix:
    """Affine int4 weights `[outputs, inputs]` in the kernels' layout."""

    __slots__ = ("_arguments", "_tensors", "group_size", "inputs", "outputs")

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Take codes as `interleave` lays them out and bfloat16 scales and zeros `[outputs, inputs / group]`."""
        self.outputs, self.inputs = codes.shape[0], 2 * codes.shape[1]
        self.group_size = self.inputs // scales.shape[1]
        self._tensors = (codes, scales, zeros)  # keeps their memory alive
        self._arguments = tuple(tensor.data_ptr() for tensor in self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply `[..., inputs]` by the transposed weights."""
        found = kernels()
        hidden = hidden.contiguous()
        result = torch.empty((*hidden.shape[:-1], self.outputs), dtype=torch.bfloat16)
        tokens = hidden.numel() // self.inputs
        widths = (tokens, self.outputs, self.inputs, self.group_size)
        scratch = torch.empty(found.lumoe_linear4_scratch(*widths), dtype=torch.uint8)
        found.lumoe_linear4(hidden.data_ptr(), result.data_ptr(), *widths, *self._arguments, scratch.data_ptr())
        return result

    def expand(self, begin: int, rows: int, into: torch.Tensor) -> torch.Tensor:
        """Return rows `begin ...` as bfloat16 `[rows, inputs]` in the memory of `into`."""
        found = kernels()
        parts = (tensor[begin : begin + rows] for tensor in self._tensors)
        pointers = [part.data_ptr() for part in parts]
        found.lumoe_expand(into.data_ptr(), rows, self.inputs, self.group_size, *pointers)
        return into[: rows * self.inputs].view(rows, self.inputs)


class NativeInt4Expert:
    """Affine int4 weights in the kernels' layout, bfloat16 activations; w1 and w3 are one matrix."""

    __slots__ = ("_arguments", "_call", "_scratch", "_widths", "w2", "w13")

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        found = kernels()
        self._call, self._scratch = found.lumoe_expert, found.lumoe_expert_scratch
        self.w13, self.w2 = (Int4Matrix(*(tensors[name + part] for part in PARTS)) for name in ("w13", "w2"))
        self._widths = (self.w13.inputs, self.w2.inputs, self.w13.group_size)
        self._arguments = (*self.w13._arguments, *self.w2._arguments)

    def __call__(self, hidden: torch.Tensor, activation: Gated | None = None) -> torch.Tensor:
        """Map `[tokens, hidden]` to the same shape; another activation than silu(gate) · up takes two calls."""
        if activation is not None:
            return self.w2(activation(*self.w13(hidden).chunk(2, dim=-1)))
        if hidden.shape[0] >= MANY_TOKENS and expands():
            return self._piecewise(hidden)
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        tokens = hidden.shape[0]
        scratch = torch.empty(self._scratch(tokens, *self._widths), dtype=torch.uint8)
        self._call(hidden.data_ptr(), output.data_ptr(), tokens, *self._widths, *self._arguments, scratch.data_ptr())
        return output

    def _piecewise(self, hidden: torch.Tensor) -> torch.Tensor:
        """Expand a piece of the weights into the cache, multiply, go on to the next."""
        tokens, wide = hidden.shape[0], self.w2.inputs
        product, output = hidden.new_empty(tokens, wide), torch.empty_like(hidden)
        memory = hidden.new_empty(_PIECE_BYTES // 2 + 2 * max(wide, hidden.shape[1]))
        rows = max(1, _PIECE_BYTES // 4 // hidden.shape[1])
        for begin in range(0, wide, rows):
            count = min(rows, wide - begin)
            piece = self.w13.expand(begin, count, memory)
            gate = functional.silu(functional.linear(hidden, piece), inplace=True)
            piece = self.w13.expand(wide + begin, count, memory)
            product[:, begin : begin + count] = gate.mul_(functional.linear(hidden, piece))
        rows = max(1, _PIECE_BYTES // 2 // wide)
        for begin in range(0, hidden.shape[1], rows):
            count = min(rows, hidden.shape[1] - begin)
            output[:, begin : begin + count] = functional.linear(product, self.w2.expand(begin, count, memory))
        return output
