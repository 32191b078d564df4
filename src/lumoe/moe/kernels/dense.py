"""Products of few tokens with bfloat16 weights, and whole experts of them (`csrc/dense.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from lumoe.moe.kernels import library
from lumoe.moe.kernels.library import SWIGLU, Gate, dense_library

BLOCK = 32
# Multiply-adds up to which several tokens are few: a call of torch's takes as long as they do.
FEW = 1 << 23


def kernels() -> ctypes.CDLL:
    """Return the compiled kernels, which `supported` has found to be there."""
    found = dense_library()
    assert found is not None
    return found


def supported(*inputs: int) -> bool:
    """Whether the kernels are there and take matrices of these inputs."""
    return all(width % BLOCK == 0 for width in inputs) and dense_library() is not None


def few(tokens: int, weights: int) -> bool:
    """Whether so many tokens are multiplied with so many weights here, and not by torch."""
    return tokens == 1 or tokens * weights <= FEW


def linear16(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply tokens `[..., inputs]` by the transposed `weight` `[outputs, inputs]`, both bfloat16."""
    outputs, inputs = weight.shape
    result = torch.empty((*hidden.shape[:-1], outputs), dtype=torch.bfloat16)
    hidden, tokens = hidden.contiguous(), hidden.numel() // inputs
    kernels().lumoe_linear16(hidden.data_ptr(), result.data_ptr(), tokens, outputs, inputs, weight.data_ptr())
    return result


class DenseWeights:
    """An expert's bfloat16 matrices as the kernels are told of them, see `library.Weights`."""

    __slots__ = ("_tensors", "arguments", "weights", "widths")

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> None:
        """Take w1 and w3 `[wide, hidden]` and w2 `[hidden, wide]`, contiguous."""
        self._tensors = (w1, w3, w2)  # keeps their memory alive
        self.arguments = tuple(tensor.data_ptr() for tensor in self._tensors)
        self.widths, self.weights = (w1.shape[1], w1.shape[0]), 3 * w1.numel()

    def few(self, tokens: int) -> bool:
        """Whether the kernels compute so many tokens of it."""
        return few(tokens, self.weights)

    def __call__(self, hidden: torch.Tensor, gate: Gate = SWIGLU) -> torch.Tensor:
        """Map `[tokens, hidden]` to the same shape."""
        output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        run_together([self], [0, hidden.shape[0]], hidden, output, [gate])
        return output


def run_together(
    experts: Sequence[DenseWeights],
    ends: Sequence[int],
    hidden: torch.Tensor,
    output: torch.Tensor,
    gates: Sequence[Gate] | None = None,
) -> None:
    """Compute several experts in one call, as `library.run_together`; a `few` tokens each."""
    found = kernels()
    library.run_together(found.lumoe_dense_experts, found.lumoe_dense_scratch, experts, ends, hidden, output, gates)
