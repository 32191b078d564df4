"""What a network makes of its two products, gate and up, before the third matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from lumoe.moe.architectures.architecture import Activation
from lumoe.moe.kernels.library import SWIGLU, Gate

# Given gate and up, which it may write over, returns the input of the third matrix.
Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up."""
    return functional.silu(gate, inplace=True).mul_(up)


class Clamped:
    """gpt-oss's: (up + offset) · gate · sigmoid(alpha · gate), both within a limit, after biases of the products."""

    __slots__ = ("_settings", "gate", "gate_bias", "up_bias")

    def __init__(
        self, settings: Activation, gate_bias: torch.Tensor | None = None, up_bias: torch.Tensor | None = None
    ) -> None:
        self._settings, self.gate_bias, self.up_bias = settings, gate_bias, up_bias
        self.gate = _in_kernels(settings, gate_bias, up_bias)

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        s = self._settings
        if self.gate_bias is not None and self.up_bias is not None:
            gate, up = gate + self.gate_bias, up + self.up_bias
        if s.limit is not None:
            gate, up = gate.clamp(max=s.limit), up.clamp(-s.limit, s.limit)
        return (up + s.offset) * (gate * torch.sigmoid(gate * s.alpha))


def _in_kernels(settings: Activation, gate_bias: torch.Tensor | None, up_bias: torch.Tensor | None) -> Gate | None:
    """Return what kernels that compute a whole expert are told; None where they do not take such biases."""
    limit = math.inf if settings.limit is None else settings.limit
    if gate_bias is None or up_bias is None:
        return Gate(limit, settings.alpha, settings.offset)
    if not all(bias.dtype == torch.bfloat16 and bias.is_contiguous() for bias in (gate_bias, up_bias)):
        return None
    return Gate(limit, settings.alpha, settings.offset, gate_bias.data_ptr(), up_bias.data_ptr())


def gate_of(activation: Gated) -> Gate | None:
    """Return what kernels compute for an activation, if they can."""
    if activation is swiglu:
        return SWIGLU
    return activation.gate if isinstance(activation, Clamped) else None


def gated(settings: Activation) -> Gated:
    """Return the function that the record `settings` stands for."""
    return swiglu if settings == Activation() else Clamped(settings)
