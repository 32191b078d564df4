"""The Mixture-of-Experts block: a router that picks experts for each token, and whoever has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch.nn import functional

from lumoe.moe.model.expert import Expert

# Called with the layer and the chosen experts, int64 [tokens, k].
Observer = Callable[[int, torch.Tensor], None]


class Experts(Protocol):
    """Whoever has the experts; where their weights lie and how they get here is its own matter."""

    def fetch(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Expert]]:
        """Yield `(index, expert)` for each of `wanted` (distinct), in any order; an expert may go with the next one.

        Args:
            tokens: how many each of `wanted` will be given; one by default.
        """
        ...


def route(hidden: torch.Tensor, gate: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's expert weights `[tokens, k]` (sum 1, hidden's type) and expert indices `[tokens, k]`.

    The softmax runs over all experts in float32 before the top k are taken and renormalised (arXiv 2401.04088, eq. 1).
    """
    return choose(functional.linear(hidden, gate), top_k, hidden.dtype)


def choose(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and indices as `route` does, from router logits `[tokens, experts]`."""
    chances = functional.softmax(logits, dim=-1, dtype=torch.float32)
    weights, chosen = chances.topk(top_k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True)).to(dtype), chosen


class MoELayer:
    """One layer's router and experts."""

    __slots__ = ("experts", "gate", "index", "observer", "top_k")

    def __init__(self, index: int, gate: torch.Tensor, top_k: int, experts: Experts) -> None:
        self.index, self.gate, self.top_k, self.experts = index, gate, top_k, experts
        self.observer: Observer | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[tokens, hidden]` to the weighted sum of each token's experts.

        Sums run in the router's order whatever order the experts arrive in, so residency never changes a bit.
        """
        return self.mix(hidden, *route(hidden, self.gate, self.top_k))

    def mix(self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return the sum of the `chosen` experts' outputs, weighted; both are `[tokens, k]`, as `route` makes them."""
        if self.observer is not None:
            self.observer(self.index, chosen)
        if hidden.shape[0] == 1:
            return self._one_token(hidden, weights, chosen.tolist()[0])
        return self._grouped(hidden, weights, chosen)

    def _one_token(self, hidden: torch.Tensor, weights: torch.Tensor, wanted: list[int]) -> torch.Tensor:
        outputs = {index: expert(hidden) for index, expert in self.experts.fetch(self.index, wanted)}
        return weights @ torch.cat([outputs[index] for index in wanted])

    def _grouped(self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        tokens, k = chosen.shape
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        ends = torch.bincount(flat).cumsum(0).tolist()
        begins = [0, *ends[:-1]]
        rows = hidden[order // k]
        outputs = torch.empty_like(rows)
        wanted = [index for index, (begin, end) in enumerate(zip(begins, ends, strict=True)) if end > begin]
        shares = [ends[index] - begins[index] for index in wanted]
        for index, expert in self.experts.fetch(self.index, wanted, shares):
            outputs[begins[index] : ends[index]] = expert(rows[begins[index] : ends[index]])
        placed = torch.empty_like(outputs)
        placed[order] = outputs
        return (placed.view(tokens, k, -1) * weights.unsqueeze(-1)).sum(dim=1)
