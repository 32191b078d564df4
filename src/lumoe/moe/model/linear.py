"""A matrix outside the experts: query-key-value, output and vocabulary projections, at 16 bits or at 4."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from lumoe.moe.kernels import native
from lumoe.moe.kernels.affine import nearest

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
    """bfloat16 weights; a single token is multiplied by a kernel that only the memory bounds."""

    __slots__ = ()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.numel() == hidden.shape[-1]:
            return native.linear16(hidden, self.weight)
        return functional.linear(hidden, self.weight)


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


def linear(weight: torch.Tensor, use_native: bool = True) -> DenseLinear:
    """Return the fastest product with `weight` `[outputs, inputs]` as it is."""
    fits = use_native and weight.dtype == torch.bfloat16 and native.supported(weight.shape[1])
    return BandwidthLinear(weight) if fits else DenseLinear(weight)


def linear4(weight: torch.Tensor, use_native: bool = True) -> Linear:
    """Round `weight` `[outputs, inputs]` to 4 bits and return the product with it.

    Without this package's kernels, or for other activations than bfloat16, the rounded weights are expanded again.
    """
    rounded = nearest(weight, 4, GROUP)
    if use_native and weight.dtype == torch.bfloat16 and native.supported(weight.shape[1]):
        return native.Int4Matrix(native.interleave(rounded), rounded.scales, rounded.zeros)
    return DenseLinear(rounded.dequantize().to(weight.dtype))
