"""From logits to tokens: temperature, nucleus (top-p) and log-probabilities, one random stream per sequence."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sampling:
    """How one sequence is drawn.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: draw from the smallest set of tokens whose probabilities sum to at least this.
        seed: of the sequence's random stream; None draws one.
        max_tokens: tokens to draw at most.
        top_logprobs: how many of the most likely tokens are reported; None reports no log-probability at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Draw:
    """One drawn token; log-probabilities are the model's own, before temperature and top-p."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Sampler:
    """Draws the tokens of one sequence."""

    sampling: Sampling
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        seed = secrets.randbits(63) if self.sampling.seed is None else self.sampling.seed
        # Other sequences and other requests never touch this stream: equal seeds give equal draws in any batch.
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    def draw(self, logits: torch.Tensor, most_likely: int) -> int:
        """Return a token for logits `[vocabulary]`."""
        if self.sampling.temperature == 0:
            return most_likely
        kept = nucleus(logits.float() / self.sampling.temperature, self.sampling.top_p)
        return int(torch.multinomial(kept, 1, generator=self.generator))


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return probabilities `[vocabulary]` with all but the smallest set that sums to `top_p` set to zero.

    They are not scaled to sum to 1. The most likely token always stays (arXiv 1904.09751, section 3.1).
    """
    probabilities = torch.softmax(logits, dim=-1)
    if top_p >= 1:
        return probabilities
    ordered, index = probabilities.sort(descending=True, stable=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    outside[0] = False
    return probabilities.scatter(-1, index[outside], 0.0)


def draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Draw]:
    """Draw one token for each row of logits `[sequences, vocabulary]`."""
    most_likely = logits.argmax(dim=-1).tolist()
    return [
        _report(row, sampler.draw(row, best), sampler.sampling.top_logprobs)
        for row, best, sampler in zip(logits, most_likely, samplers, strict=True)
    ]


def _report(logits: torch.Tensor, token: int, top: int | None) -> Draw:
    if top is None:
        return Draw(token)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, tokens = logprobs.topk(min(top, logprobs.numel()))
    return Draw(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
