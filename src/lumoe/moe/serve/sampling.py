"""From logits to tokens: temperature, nucleus (top-p) and log-probabilities, one random stream per sequence."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How one sequence is sampled.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this.
        seed: of the sequence's random stream; None draws one.
        max_tokens: tokens to sample at most.
        top_logprobs: how many of the most likely tokens are reported; None reports no log-probability at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    top_logprobs: int | None = None


@dataclass(frozen=True)
class SampledToken:
    """One sampled token; log-probabilities are the model's own, before temperature and top-p."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """How one sequence is sampled, with its stream of random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
        # Other sequences and other requests never touch this stream: equal seeds give equal tokens in any batch.
        self._random = random.Random(seed)  # noqa: S311 - draws of words, not of secrets

    def uniform(self) -> float:
        """Return the next number of the stream, uniform in [0, 1)."""
        return self._random.random()


def sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[SampledToken]:
    """Sample one token for each row of logits `[sequences, vocabulary]`."""
    tokens = logits.argmax(dim=-1)
    warm = [row for row, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    # Apart from each other: a sequence that samples from everything does so in any company.
    for cut in (False, True):
        if rows := [row for row in warm if (samplers[row].sampling.top_p < 1) == cut]:
            tokens[rows] = _sample(logits[rows], [samplers[row] for row in rows], cut)
    sampled = [SampledToken(token) for token in tokens.tolist()]
    reported = [row for row, sampler in enumerate(samplers) if sampler.sampling.top_logprobs is not None]
    if reported:
        counts = [samplers[row].sampling.top_logprobs or 0 for row in reported]
        for row, report in zip(reported, _report(logits[reported], tokens[reported], counts), strict=True):
            sampled[row] = report
    return sampled


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely tokens that together reach `top_p` (arXiv 1904.09751, section 3.1).

    Args:
        probabilities: `[sequences, vocabulary]`.
        top_p: `[sequences, 1]`.

    Returns:
        Tokens by falling probability and the cumulated probabilities of these, both `[sequences, vocabulary]`; the sums
        do not grow beyond the smallest set that reaches `top_p`, which holds the most likely token at least.
    """
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulated = ordered.cumsum(dim=-1, dtype=torch.float64)
    size = (cumulated - ordered < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
    return tokens, cumulated.minimum(cumulated.gather(-1, size - 1))


def _sample(logits: torch.Tensor, samplers: Sequence[Sampler], cut: bool) -> torch.Tensor:
    """Return tokens `[sequences]`: each stream's next number, put through the inverse of the cumulated probabilities.

    Args:
        cut: whether to sample from the nucleus only.
    """
    settings = [(s.sampling.temperature, s.sampling.top_p, s.uniform()) for s in samplers]
    columns = torch.tensor(settings, dtype=torch.float64, device=logits.device).unsqueeze(1)
    temperature, top_p, uniform = columns.unbind(-1)
    # Below the clamp nothing but the most likely token has a chance in float32, and a quotient may not be finite.
    probabilities = torch.softmax(logits.float() / temperature.clamp(min=1e-4).float(), dim=-1)
    if cut:
        tokens, cumulated = nucleus(probabilities, top_p)
    else:
        tokens, cumulated = None, probabilities.cumsum(dim=-1, dtype=torch.float64)
    place = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).clamp(max=cumulated.shape[1] - 1)
    return (place if tokens is None else tokens.gather(-1, place)).squeeze(1)


def _report(logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> list[SampledToken]:
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    drawn = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
    values, best = logprobs.topk(min(max(counts), logprobs.shape[1]))
    rows = zip(tokens.tolist(), drawn, best.tolist(), values.tolist(), counts, strict=True)
    return [
        SampledToken(token, logprob, tuple(zip(top[:count], near[:count], strict=True)))
        for token, logprob, top, near, count in rows
    ]
