"""One expert's arithmetic: 16 bits, 8 bits, 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn import functional

from lumoe.moe.kernels import torch_kernels as kernels
from lumoe.moe.kernels.torch_kernels import Int4Matmul
from lumoe.moe.model.linear import linear

MATRICES = ("w1", "w2", "w3")


class Expert(Protocol):
    """Maps hidden states `[tokens, hidden]` to the expert's output of the same shape and type."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor: ...


class DenseExpert:
    """Weights in the type of the activations."""

    __slots__ = ("w1", "w2", "w3")

    def __init__(self, tensors: Mapping[str, torch.Tensor], use_native: bool = True) -> None:
        self.w1, self.w2, self.w3 = (linear(tensors[name], use_native) for name in MATRICES)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(hidden), inplace=True).mul_(self.w3(hidden)))


class Int4Expert:
    """Affine int4 weights, bfloat16 activations, on torch's kernel of the device; w1 and w3 are one matrix."""

    __slots__ = ("group_size", "matmul", "w2", "w2_scales", "w13", "w13_scales")

    def __init__(self, tensors: Mapping[str, torch.Tensor], group_size: int, matmul: Int4Matmul) -> None:
        self.w13, self.w13_scales = tensors["w13"], tensors["w13_scales"]
        self.w2, self.w2_scales = tensors["w2"], tensors["w2_scales"]
        self.group_size, self.matmul = group_size, matmul

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.matmul(hidden, self.w13, self.group_size, self.w13_scales).chunk(2, dim=-1)
        return self.matmul(functional.silu(gate).mul_(up), self.w2, self.group_size, self.w2_scales)


class Int8Expert:
    """Symmetric int8 rows, bfloat16 activations; w1 and w3 are one matrix."""

    __slots__ = ("w2", "w2_scales", "w13", "w13_scales")

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.w13, self.w13_scales = tensors["w13"], tensors["w13_scales"]
        self.w2, self.w2_scales = tensors["w2"], tensors["w2_scales"]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = kernels.int8_matmul(hidden, self.w13, self.w13_scales).chunk(2, dim=-1)
        return kernels.int8_matmul(functional.silu(gate).mul_(up), self.w2, self.w2_scales)
