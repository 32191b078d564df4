"""A matrix outside the experts: query-key-value, output and vocabulary projections, at 16 bits, at 4 or in codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe.kernels import dense, native
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.kernels.codes import CodedMatrix

GROUP = 64


class Linear(Protocol):
    """Multiplies `[..., inputs]` by its transposed weights `[outputs, inputs]`."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...


class DenseLinear:
    """Weights in the type of the activations, torch's product."""

    __slots__ = ("weight",)

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weight.nbytes

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden, self.weight)


class BandwidthLinear(DenseLinear):
    """bfloat16 weights; few tokens are multiplied by a kernel that only the memory bounds."""

    __slots__ = ()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if dense.few(hidden.numel() // hidden.shape[-1], self.weight.numel()):
            return dense.linear16(hidden, self.weight)
        return functional.linear(hidden, self.weight)


class StackedLinear:
    """Matrices of the same inputs, above each other: their outputs follow one another."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = list(parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(hidden) for part in self.parts], dim=-1)


class BiasedLinear:
    """A product and what is added to it."""

    __slots__ = ("bias", "product")

    def __init__(self, product: Linear, bias: torch.Tensor) -> None:
        self.product, self.bias = product, bias

    @property
    def nbytes(self) -> int:
        """Bytes of weights and biases."""
        return self.product.nbytes + self.bias.nbytes

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.product(hidden) + self.bias


class Rows(NamedTuple):
    """A matrix as it is read: weights `[outputs, inputs]`, or blocks `[outputs, bytes]` of a format (ggml's name).

    Either way rows can be put in another order.
    """

    values: torch.Tensor
    kind: str | None = None


def stacked(parts: Sequence[Rows], use_native: bool = True) -> Linear:
    """Return the product with matrices of the same inputs above each other; neighbours of one format are one matrix."""
    made: list[Linear] = []
    for kind, group in groupby(parts, key=lambda part: part.kind):
        found = [part.values for part in group]
        values = found[0] if len(found) == 1 else torch.cat(found)
        made.append(linear(values, use_native) if kind is None else CodedMatrix(values, kind))
    return made[0] if len(made) == 1 else StackedLinear(made)


def linear(weight: torch.Tensor, use_native: bool = True) -> DenseLinear:
    """Return the fastest product with `weight` `[outputs, inputs]` as it is."""
    fits = use_native and weight.dtype == torch.bfloat16 and dense.supported(weight.shape[1])
    return BandwidthLinear(weight) if fits else DenseLinear(weight)


def linear4(weight: torch.Tensor, use_native: bool = True) -> Linear:
    """Round `weight` `[outputs, inputs]` to 4 bits and return the product with it.

    Without this package's kernels, or for other activations than bfloat16, the rounded weights are expanded again.

    Raises:
        UserError: groups do not divide the inputs.
    """
    if weight.shape[1] % GROUP:
        raise UserError(
            f"a matrix of {weight.shape[1]} inputs cannot be rounded to 4 bits in groups of {GROUP}; "
            "leave the weights outside the experts at 16 bits"
        )
    rounded = nearest(weight, 4, GROUP)
    if use_native and weight.dtype == torch.bfloat16 and native.supported(weight.shape[1]):
        return native.BandedMatrix(*native.banded(rounded), bits=rounded.bits, outputs=weight.shape[0])
    return DenseLinear(rounded.dequantize().to(weight.dtype))
