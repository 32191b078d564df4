"""Matrices and experts that run on this package's own kernels (`csrc/experts.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from lumoe.moe.kernels import library
from lumoe.moe.kernels.affine import AffineMatrix
from lumoe.moe.kernels.library import SWIGLU, Gate, expands
from lumoe.moe.kernels.torch_kernels import stack_rows

BLOCK = 64
BAND = 16  # outputs whose weights stand together
STEP = 32  # inputs of a group are a multiple of it
BITS = (2, 3, 4, 8)
_LARGEST_ACTIVATION = 2**15 - 1  # in magnitude, as integers
# From this many tokens on, weights are expanded piece by piece for torch's bfloat16 product, where that is fast.
MANY_TOKENS = 16
PARTS = ("", "_scales", "_zeros")
Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_PIECE_BYTES = 4 << 20  # of expanded weights: they stay in the processor's cache


def kernels() -> ctypes.CDLL:
    """Return the compiled kernels, which `supported` has found to be there."""
    found = library.library()
    assert found is not None
    return found


def supported(*widths: int) -> bool:
    """Whether the kernels are there and take matrices of these widths."""
    return all(width % BLOCK == 0 for width in widths) and library.library() is not None


def groups_supported(group: int, bits: int) -> bool:
    """Whether the kernels take weights of so many bits of which so many share a scale: a group's sum has 32 bits."""
    fits = group * (2**bits - 1) * _LARGEST_ACTIVATION < 2**31
    return bits in BITS and group % STEP == 0 and fits and library.library() is not None


def banded(matrix: AffineMatrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay a matrix out as the kernels read it, see `experts.cpp` and `unpack.h`: codes, scales and zeros.

    Codes are uint8 `[outputs, inputs · bits / 8]`, scales and zeros bfloat16 `[outputs, inputs / group]`, each in the
    order of bands of 16 outputs; outputs of zeros fill the last one.
    """
    missing = -matrix.codes.shape[0] % BAND
    codes, scales, zeros = (
        functional.pad(part, (0, 0, 0, missing)) if missing else part
        for part in (matrix.codes, matrix.scales, matrix.zeros)
    )
    rows, groups = scales.shape
    if matrix.bits == 3:
        low, third = _words(codes & 3, 2), _words(codes >> 2, 1)
        words = torch.cat((low.view(-1, 2, BAND * 4), third.view(-1, 1, BAND * 4)), dim=1)
    else:
        words = _words(codes, matrix.bits)
    scales, zeros = (
        part.view(rows // BAND, BAND, groups).transpose(1, 2).reshape(rows, groups) for part in (scales, zeros)
    )
    return words.view(rows, -1), scales, zeros


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes uint8 `[outputs, inputs]` below `2**bits` into words of 32 bits: uint8 `[bands, steps, 16, 4]`.

    A word's low half has its even inputs, the high half its odd ones, the first of each in the lowest bits.
    """
    rows, inputs = codes.shape
    each = 8 // bits
    split = codes.view(rows // BAND, BAND, inputs * bits // 32, 2, each, 2)  # [band, row, step, byte, place, half]
    packed = split[:, :, :, :, 0]
    for place in range(1, each):
        packed = packed | (split[:, :, :, :, place] << (bits * place))
    return packed.permute(0, 2, 1, 4, 3).contiguous()


def expert_tensors(w1: AffineMatrix, w2: AffineMatrix, w3: AffineMatrix) -> dict[str, torch.Tensor]:
    """Return the tensors of a `BandedExpert`."""
    matrices = {"w13": banded(stack_rows(w1, w3)), "w2": banded(w2)}
    return {name + part: tensor for name, parts in matrices.items() for part, tensor in zip(PARTS, parts, strict=True)}


class BandedMatrix:
    """Affine weights `[outputs, inputs]` of 8, 4, 3 or 2 bits in the kernels' layout."""

    __slots__ = ("_tensors", "arguments", "bits", "group_size", "inputs", "outputs")

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, outputs: int | None = None
    ) -> None:
        """Take what `banded` returns; `outputs` are all rows if None."""
        self.bits = bits
        self.outputs, self.inputs = outputs or codes.shape[0], codes.shape[1] * 8 // bits
        self.group_size = self.inputs // scales.shape[1]
        self._tensors = (codes, scales, zeros)  # keeps their memory alive
        self.arguments = tuple(tensor.data_ptr() for tensor in self._tensors)

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
        widths, form = (tokens, self.outputs, self.inputs), (self.bits, self.group_size)
        scratch = torch.empty(found.lumoe_affine_linear_scratch(*widths), dtype=torch.uint8)
        places = hidden.data_ptr(), result.data_ptr()
        found.lumoe_affine_linear(*places, *widths, *form, *self.arguments, scratch.data_ptr())
        return result

    def expand(self, begin: int, rows: int, into: torch.Tensor) -> torch.Tensor:
        """Return rows `begin ...`, where a band begins, as bfloat16 `[rows, inputs]` in the memory of `into`."""
        assert begin % BAND == 0
        found = kernels()
        pointers = [tensor[begin:].data_ptr() for tensor in self._tensors]
        found.lumoe_expand(into.data_ptr(), rows, self.inputs, self.bits, self.group_size, *pointers)
        return into[: rows * self.inputs].view(rows, self.inputs)


class BandedExpert:
    """Affine weights in the kernels' layout, bfloat16 activations; w1 and w3 are one matrix."""

    __slots__ = ("arguments", "w2", "w13", "widths")

    def __init__(self, tensors: Mapping[str, torch.Tensor], bits: int) -> None:
        self.w13, self.w2 = (
            BandedMatrix(tensors[name], tensors[f"{name}_scales"], tensors[f"{name}_zeros"], bits)
            for name in ("w13", "w2")
        )
        self.widths = (self.w13.inputs, self.w2.inputs)
        self.arguments = (bits, self.w13.group_size, *self.w13.arguments, *self.w2.arguments)

    def __call__(self, hidden: torch.Tensor, activation: Gated | None = None, gate: Gate | None = None) -> torch.Tensor:
        """Map `[tokens, hidden]` to the same shape.

        Args:
            activation: in place of silu(gate) · up.
            gate: what the kernel computes that is the same; None: it has none, which takes two calls.
        """
        gate = SWIGLU if activation is None else gate
        many = expanded(hidden.shape[0])
        if activation is not None and (many or gate is None):
            return self.w2(activation(*self.w13(hidden).chunk(2, dim=-1)))
        if many:
            return self._piecewise(hidden)
        output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        run_together([self], [0, hidden.shape[0]], hidden, output, gate and [gate])
        return output

    def _piecewise(self, hidden: torch.Tensor) -> torch.Tensor:
        """Expand a piece of the weights into the cache, multiply, go on to the next."""
        tokens, wide = hidden.shape[0], self.w2.inputs
        product, output = hidden.new_empty(tokens, wide), torch.empty_like(hidden)
        memory = hidden.new_empty(_PIECE_BYTES // 2 + BAND * max(wide, hidden.shape[1]))
        rows = _whole_bands(_PIECE_BYTES // 4 // hidden.shape[1])
        for begin in range(0, wide, rows):
            count = min(rows, wide - begin)
            piece = self.w13.expand(begin, count, memory)
            gate = functional.silu(functional.linear(hidden, piece), inplace=True)
            piece = self.w13.expand(wide + begin, count, memory)
            product[:, begin : begin + count] = gate.mul_(functional.linear(hidden, piece))
        rows = _whole_bands(_PIECE_BYTES // 2 // wide)
        for begin in range(0, hidden.shape[1], rows):
            count = min(rows, hidden.shape[1] - begin)
            output[:, begin : begin + count] = functional.linear(product, self.w2.expand(begin, count, memory))
        return output


def expanded(tokens: int) -> bool:
    """Whether an expert of so many tokens is expanded for a bfloat16 product."""
    return tokens >= MANY_TOKENS and expands()


def run_together(
    experts: Sequence[BandedExpert],
    ends: Sequence[int],
    hidden: torch.Tensor,
    output: torch.Tensor,
    gates: Sequence[Gate] | None = None,
) -> None:
    """Compute several experts in one call, as `library.run_together`; fewer tokens each than are `expanded`."""
    found = kernels()
    library.run_together(found.lumoe_experts, found.lumoe_expert_scratch, experts, ends, hidden, output, gates)


def _whole_bands(rows: int) -> int:
    return max(rows // BAND, 1) * BAND
