"""One expert's arithmetic, by the format of its weights: 16, 8 and 4 bits, and codes that no kernel multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn import functional

from lumoe.moe.kernels import codes, dense, native
from lumoe.moe.kernels import torch_kernels as kernels
from lumoe.moe.kernels.affine import AffineMatrix, looked_up, unpack_nibbles
from lumoe.moe.kernels.library import Gate
from lumoe.moe.kernels.torch_kernels import Int4Matmul
from lumoe.moe.model.activation import Gated, gate_of, swiglu
from lumoe.moe.model.linear import BandwidthLinear, DenseLinear, linear

MATRICES = ("w1", "w2", "w3")
# Weights that `ExpandedExpert` expands at once: what a core's cache holds in float32.
_EXPANDED_AT_ONCE = 1 << 18


class Expert(Protocol):
    """Maps hidden states `[tokens, hidden]` to the expert's output of the same shape and type.

    The activation makes the input of the third matrix from the products of the first and the third.
    """

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor: ...


class DenseExpert:
    """Weights in the type of the activations; few tokens are one call where a kernel is there."""

    __slots__ = ("dense", "w1", "w2", "w3")

    def __init__(self, tensors: Mapping[str, torch.Tensor], use_native: bool = True) -> None:
        self.w1, self.w2, self.w3 = (linear(tensors[name], use_native) for name in MATRICES)
        fits = all(isinstance(part, BandwidthLinear) and part.weight.is_contiguous() for part in self._parts)
        self.dense = dense.DenseWeights(*(part.weight for part in self._parts)) if fits else None

    @property
    def _parts(self) -> tuple[DenseLinear, DenseLinear, DenseLinear]:
        return self.w1, self.w2, self.w3

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        gate = gate_of(activation)
        if self.dense is not None and gate is not None and self.dense.few(hidden.shape[0]):
            return self.dense(hidden, gate)
        return self.w2(activation(self.w1(hidden), self.w3(hidden)))


class NativeExpert:
    """Affine weights in the layout of this package's kernels, which compute a whole expert in one call."""

    __slots__ = ("native",)

    def __init__(self, tensors: Mapping[str, torch.Tensor], bits: int) -> None:
        self.native = native.BandedExpert(tensors, bits)

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        return self.native(hidden, None if activation is swiglu else activation, gate_of(activation))


def run_together(
    experts: Sequence[Expert], ends: Sequence[int], hidden: torch.Tensor, gates: Sequence[Gate | None]
) -> torch.Tensor | None:
    """Return what experts make of their tokens, `[tokens, hidden]`, computed in one call; None where none does that.

    Args:
        ends: where the tokens of each end, after a 0: expert i has rows `ends[i] ... ends[i + 1]`.
        gates: what stands for each one's activation, see `gate_of`; only their biases differ.
    """
    kinds = {type(expert) for expert in experts}
    if len(kinds) > 1 or None in gates:
        return None
    shares = {end - begin for begin, end in pairwise(ends)}
    given = [gate for gate in gates if gate is not None]
    output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    if kinds == {DenseExpert}:
        dense_ones = [
            expert.dense for expert in experts if isinstance(expert, DenseExpert) and expert.dense is not None
        ]
        if len(dense_ones) < len(experts) or not all(map(dense_ones[0].few, shares)):
            return None
        dense.run_together(dense_ones, ends, hidden, output, given)
    elif kinds == {NativeExpert}:
        if any(map(native.expanded, shares)):
            return None
        affine = [expert.native for expert in experts if isinstance(expert, NativeExpert)]
        native.run_together(affine, ends, hidden, output, given)
    elif kinds == {CodedExpert}:
        coded = [expert.coded for expert in experts if isinstance(expert, CodedExpert)]
        if any(map(codes.by_pieces, shares)):
            return None
        codes.run_together(coded, ends, hidden, output, given)
    else:
        return None
    return output


class CodedExpert:
    """Weights in the codes of a checkpoint's own format (ggml's), one for each matrix."""

    __slots__ = ("coded",)

    def __init__(self, tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, str]) -> None:
        self.coded = codes.CodedExpert(tensors, kinds)

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        return self.coded(hidden, None if activation is swiglu else activation, gate_of(activation))


class Int4Expert:
    """Affine int4 weights, bfloat16 activations, on torch's kernel of the device; w1 and w3 are one matrix."""

    __slots__ = ("group_size", "matmul", "w2", "w2_scales", "w13", "w13_scales")

    def __init__(self, tensors: Mapping[str, torch.Tensor], group_size: int, matmul: Int4Matmul) -> None:
        self.w13, self.w13_scales = tensors["w13"], tensors["w13_scales"]
        self.w2, self.w2_scales = tensors["w2"], tensors["w2_scales"]
        self.group_size, self.matmul = group_size, matmul

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        gate, up = self.matmul(hidden, self.w13, self.group_size, self.w13_scales).chunk(2, dim=-1)
        return self.matmul(activation(gate.contiguous(), up), self.w2, self.group_size, self.w2_scales)


class Int8Expert:
    """Symmetric int8 rows, bfloat16 activations; w1 and w3 are one matrix."""

    __slots__ = ("w2", "w2_scales", "w13", "w13_scales")

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.w13, self.w13_scales = tensors["w13"], tensors["w13_scales"]
        self.w2, self.w2_scales = tensors["w2"], tensors["w2_scales"]

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        gate, up = kernels.int8_matmul(hidden, self.w13, self.w13_scales).chunk(2, dim=-1)
        return kernels.int8_matmul(activation(gate.contiguous(), up), self.w2, self.w2_scales)


class ExpandedExpert:
    """Codes of a format without a kernel: expanded to the activations' type some rows at a time, and multiplied there.

    It takes the memory of its codes and is slower than a kernel, which would not expand them.
    """

    __slots__ = ("_tensors", "bits")

    def __init__(self, tensors: Mapping[str, torch.Tensor], bits: int) -> None:
        """Take an expert as a folder of quantised experts stores it.

        Args:
            tensors: for each of w1, w2, w3 its `codes`, `scales`, and `zeros` (affine) or `values` (a codebook).
            bits: of a code; two lie in a byte where they have at most 4.
        """
        self._tensors, self.bits = dict(tensors), bits

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        gate, up = self._product("w1", hidden), self._product("w3", hidden)
        return self._product("w2", activation(gate, up))

    def _product(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        rows, step = len(self._tensors[f"{name}.codes"]), max(_EXPANDED_AT_ONCE // hidden.shape[1], 1)
        blocks = [
            functional.linear(hidden, self._weights(name, slice(begin, begin + step)).to(hidden.dtype))
            for begin in range(0, rows, step)
        ]
        return torch.cat(blocks, dim=1)

    def _weights(self, name: str, rows: slice) -> torch.Tensor:
        found, scales = self._tensors[f"{name}.codes"][rows], self._tensors[f"{name}.scales"][rows]
        found = unpack_nibbles(found) if self.bits <= 4 else found
        if f"{name}.values" in self._tensors:
            return looked_up(found, scales, self._tensors[f"{name}.values"])
        return AffineMatrix(found, scales, self._tensors[f"{name}.zeros"][rows], self.bits).dequantize()
