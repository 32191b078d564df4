"""Routers: from a token's logits to its experts and their weights."""

from __future__ import annotations

import torch
from torch.nn import functional

from lumoe.moe.architectures.architecture import Router as Settings


class Router:
    """One layer's router.

    Attributes:
        gate: `[experts, hidden]`.
        bias, correction: `[experts]`, added to the logits, and to the scores for the choice alone.
    """

    __slots__ = ("bias", "correction", "gate", "settings", "top_k")

    def __init__(
        self,
        gate: torch.Tensor,
        top_k: int,
        settings: Settings | None = None,
        bias: torch.Tensor | None = None,
        correction: torch.Tensor | None = None,
    ) -> None:
        self.gate, self.top_k, self.settings = gate, top_k, settings or Settings()
        self.bias, self.correction = bias, correction

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in (self.gate, self.bias, self.correction) if tensor is not None)

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's expert weights `[tokens, k]` (hidden's type) and expert indices `[tokens, k]`."""
        at = hidden.float() if self.settings.float32 else hidden
        return self.choose(functional.linear(at, self.gate, self.bias), hidden.dtype)

    def choose(self, logits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights and indices as a call does, from router logits `[tokens, experts]`.

        Scores are computed in float32 whatever the type of the logits.
        """
        s = self.settings
        if s.score == "sparsemixer":
            weights, chosen = sparsemixer(logits.float(), s.threshold)
            return weights.to(dtype), chosen
        if s.score == "sigmoid":
            scores = logits.float().sigmoid()
        else:
            scores = functional.softmax(logits, dim=-1, dtype=torch.float32)
        if self.correction is None and s.groups == 1:
            weights, chosen = scores.topk(self.top_k, dim=-1)
        else:
            chosen = self._corrected(scores).topk(self.top_k, dim=-1).indices
            weights = scores.gather(1, chosen)
        if s.normalize:
            total = weights.sum(dim=-1, keepdim=True)
            weights = weights / (total.clamp(min=s.least_sum) if s.least_sum else total)
        if s.scale != 1.0:
            weights = weights * s.scale
        return weights.to(dtype), chosen

    def _corrected(self, scores: torch.Tensor) -> torch.Tensor:
        """Return what experts are chosen by: scores with the correction, minus infinity outside the best groups."""
        s = self.settings
        found = scores if self.correction is None else scores + self.correction
        if s.groups == 1:
            return found
        grouped = found.view(len(found), s.groups, -1)
        best = grouped.amax(dim=-1) if s.group_score == "best" else grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(s.chosen_groups, dim=-1).indices, True)
        return grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)


def sparsemixer(logits: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and indices `[tokens, 2]`: the two largest, each weighted by a softmax over those close to it.

    Close is a distance from the largest logit, relative to the larger of it and the logit's absolute value, of at most
    `threshold` (arXiv 2409.12136; transformers' phimoe uses twice its `router_jitter_noise`, at inference, too).
    """
    weights, chosen, left = [], [], logits
    for _ in range(2):
        largest, index = left.max(dim=-1, keepdim=True)
        far = (largest - logits) / logits.abs().clamp(min=largest) > threshold
        weights.append(left.masked_fill(far, -torch.inf).softmax(dim=-1).gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)
