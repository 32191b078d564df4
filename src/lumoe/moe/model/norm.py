"""Normalisation over the last axis, as layers apply it before attention and experts."""

from __future__ import annotations

import torch
from torch.nn import functional

from lumoe.moe.kernels.library import norms_library


class Norm:
    """Divides by the root mean square; with a bias, first takes the mean away (layer norm).

    Weights of another type than the activations are in float32, and so is the computation then.
    """

    __slots__ = ("bias", "epsilon", "weight")

    def __init__(self, weight: torch.Tensor, epsilon: float, bias: torch.Tensor | None = None) -> None:
        self.weight, self.epsilon, self.bias = weight, epsilon, bias

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.bias is not None:
            return functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.epsilon)
        if hidden.dtype == torch.bfloat16 and hidden.is_cpu and (library := norms_library()) is not None:
            hidden = hidden.contiguous()
            found, width = torch.empty_like(hidden), self.weight.numel()
            library.lumoe_rms_norm(
                hidden.data_ptr(), found.data_ptr(), hidden.numel() // width, width, self.weight.data_ptr(),
                self.weight.dtype == torch.float32, self.epsilon,
            )  # fmt: skip
            return found
        if self.weight.dtype != hidden.dtype:
            wide = functional.rms_norm(hidden.to(self.weight.dtype), self.weight.shape, self.weight, self.epsilon)
            return wide.to(hidden.dtype)
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)
