"""Routing that no model made: some experts are wanted often, and which ones they are drifts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lumoe.moe.measurement.replay import Trace


@dataclass(frozen=True)
class Drifting:
    """How skewed routing is and how it drifts; layers choose independently.

    Attributes:
        experts: of each layer, `top_k` of which a token is routed to.
        exponent: of Zipf's law: the expert of rank r is wanted in proportion to r^-exponent. 0 is balanced.
        period: tokens after which ranks move on by `shift` experts.
        layers: with experts.
    """

    experts: int
    top_k: int
    exponent: float = 1.0
    period: int = 250
    shift: int = 2
    layers: int = 4

    @property
    def name(self) -> str:
        """For tables."""
        return f"drift-{self.experts}x{self.top_k}"

    def draw(self, tokens: int, seed: int) -> Trace:
        """Return a trace `[tokens, L, k]`: a token's experts are distinct, drawn by how much they are wanted."""
        generator = np.random.default_rng(seed)
        ranked = np.stack([generator.permutation(self.experts) for _ in range(self.layers)])
        moved = np.arange(tokens) // self.period * self.shift
        # Rank of each expert by token and layer; the largest of log-weights with Gumbel noise are such a draw.
        rank = (np.argsort(ranked, axis=1)[None] + moved[:, None, None]) % self.experts
        noisy = generator.gumbel(size=rank.shape) - self.exponent * np.log1p(rank)
        return np.argsort(-noisy, axis=-1)[..., : self.top_k]


COARSE = Drifting(experts=8, top_k=2)
FINE = Drifting(experts=64, top_k=8, shift=16)
