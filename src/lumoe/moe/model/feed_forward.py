"""A gated network that every token passes: in place of experts, or beside them."""

from __future__ import annotations

import torch

from lumoe.moe.model.activation import Gated
from lumoe.moe.model.linear import Linear


class FeedForward:
    """`w2 · activation(w1·x, w3·x)`; w1 and w3 are one matrix."""

    __slots__ = ("activation", "gate", "w2", "w13")

    def __init__(self, w13: Linear, w2: Linear, activation: Gated, gate: torch.Tensor | None = None) -> None:
        """Take projections.

        Args:
            gate: `[1, hidden]`; the output is multiplied by the sigmoid of its product with the input.
        """
        self.w13, self.w2, self.activation, self.gate = w13, w2, activation, gate

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.w13.nbytes + self.w2.nbytes + (0 if self.gate is None else self.gate.nbytes)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[tokens, hidden]` to the same shape."""
        output = self.w2(self.activation(*self.w13(hidden).chunk(2, dim=-1)))
        if self.gate is not None:
            output = output * torch.sigmoid(torch.nn.functional.linear(hidden, self.gate))
        return output
