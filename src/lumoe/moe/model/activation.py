"""What a network makes of its two products, gate and up, before the third matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from lumoe.moe.architectures.architecture import Activation

# Given gate and up, which it may write over, returns the input of the third matrix.
Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up; kernels that compute a whole expert have it built in."""
    return functional.silu(gate, inplace=True).mul_(up)


class Clamped:
    """gpt-oss's: (up + offset) · gate · sigmoid(alpha · gate), both within a limit, after biases of the products."""

    __slots__ = ("_settings", "gate_bias", "up_bias")

    def __init__(
        self, settings: Activation, gate_bias: torch.Tensor | None = None, up_bias: torch.Tensor | None = None
    ) -> None:
        self._settings, self.gate_bias, self.up_bias = settings, gate_bias, up_bias

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        s = self._settings
        if self.gate_bias is not None and self.up_bias is not None:
            gate, up = gate + self.gate_bias, up + self.up_bias
        if s.limit is not None:
            gate, up = gate.clamp(max=s.limit), up.clamp(-s.limit, s.limit)
        return (up + s.offset) * (gate * torch.sigmoid(gate * s.alpha))


def gated(settings: Activation) -> Gated:
    """Return the function that the record `settings` stands for."""
    return swiglu if settings == Activation() else Clamped(settings)
