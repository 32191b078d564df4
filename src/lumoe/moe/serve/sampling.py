"""From logits to tokens: penalties, temperature, what may be drawn, the draw, and log-probabilities.

A draw is a race: token i arrives after q_i / p_i, where the q_i are exponentially distributed, and the first one wins.
It is drawn with probability p_i, as by the inverse of the cumulated probabilities. But there each token's share of the
interval moves with all probabilities before it, so that their rounding changes many draws; here a draw changes only
where two tokens arrive almost together. The q_i depend on seed, sequence, position and token alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lumoe.moe.serve.constraints import Form

# Below it nothing but the most likely token has a chance in float32, and a quotient may not be finite.
LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """How one sequence is sampled.

    Bias and penalties change the logits, in this order: bias, repetition, frequency and presence. Of what temperature
    makes of them, `top_k`, `top_p` and `min_p` keep the most likely tokens, in this order.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this.
        seed: of the draws; None draws one.
        max_tokens: tokens to sample at most.
        top_logprobs: how many of the most likely tokens are reported; None reports no log-probability at all.
        sequence: which of the sequences of one seed this is: each has draws of its own.
        top_k: sample from the so many most likely tokens; 0 from all.
        min_p: sample from tokens that are at least so likely, in shares of the likeliest one's probability.
        frequency_penalty: taken from a token's logit for each time that the answer has it already.
        presence_penalty: taken from the logit of a token that the answer has already.
        repetition_penalty: divides the logit of a token that prompt or answer has, multiplies one below 0; 1 is none.
        logit_bias: (token, what is added to its logit).
        min_tokens: before so many, none that ends the sequence is drawn and no stop string ends it.
        show_stop: whether the stop string or token that ends the sequence is in its text.
        form: what the sequence is held to.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    top_logprobs: int | None = None
    sequence: int = 0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    show_stop: bool = False
    form: Form | None = None

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(self.frequency_penalty or self.presence_penalty) or self.repetition_penalty != 1

    @property
    def cuts(self) -> bool:
        """Whether some tokens may not be drawn."""
        return bool(self.top_k or self.min_p) or self.top_p < 1


@dataclass(frozen=True)
class SampledToken:
    """One token; log-probabilities are the model's own, before penalties, temperature and cuts.

    Attributes:
        logprob: None of the first token of a prompt, which nothing comes before.
        offset: where in the answer's text it begins; set when it is decoded.
    """

    token: int
    logprob: float | None = 0.0
    top: tuple[tuple[int, float], ...] = ()
    offset: int = 0


class Sampler:
    """How one sequence is sampled, and what its draws depend on.

    Attributes:
        position: tokens drawn so far.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int] = (), ends: frozenset[int] = frozenset()) -> None:
        """Begin a sequence after `prompt`, which tokens of `ends` end."""
        self.sampling, self.position, self._ends = sampling, 0, tuple(ends)
        form = sampling.form
        self._follower = form.grammar.follow(ends, form.freedom) if form else None
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
        self._prompt = {*prompt} if sampling.repetition_penalty != 1 else set[int]()
        self._counts: dict[int, int] = {}

    @property
    def complete(self) -> bool:
        """Whether the form that the sequence is held to is complete."""
        return self._follower is not None and self._follower.complete

    @property
    def changes(self) -> bool:
        """Whether the next token's logits are changed."""
        s = self.sampling
        return s.penalises or bool(s.logit_bias) or self._too_early or self._follower is not None

    @property
    def _too_early(self) -> bool:
        return self.position < self.sampling.min_tokens

    def words(self, count: int) -> NDArray[np.uint32]:
        """Return `count` random words, uint32 `[count]`, for the next draw: the same ones until `drawn`."""
        key = np.array([self._seed, self.sampling.sequence], dtype=np.uint64)
        # A counter for each position: a draw costs the same wherever it is, and no sequence touches another's.
        counter = np.array([0, 0, 0, self.position], dtype=np.uint64)
        raw = np.random.Philox(key=key, counter=counter).random_raw(-(-count // 2))
        words: NDArray[np.uint32] = raw.astype("<u8", copy=False).view("<u4")[:count]
        return words

    def drawn(self, token: int) -> None:
        """Take note of what was drawn."""
        self.position += 1
        if self._follower is not None:
            self._follower.take(token)
        if self.sampling.penalises:
            self._counts[token] = self._counts.get(token, 0) + 1

    def change(self, logits: torch.Tensor) -> None:
        """Put bias and penalties into float32 logits `[vocabulary]`, in place, and take out what may not come.

        Repetition as in arXiv 1909.05858, section 4.1; frequency and presence as in OpenAI's interface.

        Raises:
            ConstraintError: the form that the sequence is held to allows nothing.
        """
        s, place = self.sampling, logits.device
        if s.logit_bias:
            tokens, values = zip(*s.logit_bias, strict=True)
            logits.index_add_(0, torch.tensor(tokens, device=place), torch.tensor(values, device=place))
        if s.repetition_penalty != 1 and (self._prompt or self._counts):
            seen = torch.tensor([*{*self._prompt, *self._counts}], device=place)
            chosen = logits[seen]
            logits[seen] = torch.where(chosen < 0, chosen * s.repetition_penalty, chosen / s.repetition_penalty)
        if self._counts and (s.frequency_penalty or s.presence_penalty):
            seen = torch.tensor([*self._counts], device=place)
            counts = torch.tensor([*self._counts.values()], dtype=torch.float32, device=place)
            logits[seen] -= s.frequency_penalty * counts + s.presence_penalty
        if self._too_early:
            # Stop tokens of a request may be none of the model's.
            logits[[token for token in self._ends if token < len(logits)]] = -torch.inf
        if self._follower is not None:
            self._follower.confine(logits)


def sample(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[SampledToken]:
    """Sample one token for each row of logits `[sequences, vocabulary]`.

    Raises:
        FloatingPointError: the largest value of a row is not finite; nothing was drawn then.
        ConstraintError: a sequence is held to a form that allows nothing; nothing was drawn then.
    """
    chosen = _changed(logits, samplers)
    most, tokens = chosen.max(dim=-1)
    # What is not a number counts as the largest of its row.
    if not bool(most.isfinite().all()):
        raise FloatingPointError("the model's logits are not finite")
    warm = [row for row, sampler in enumerate(samplers) if sampler.sampling.temperature > 0]
    # Apart from each other: a sequence that samples from everything does so in any company.
    for cut in (False, True):
        if rows := [row for row in warm if samplers[row].sampling.cuts == cut]:
            tokens[rows] = _draw(chosen[rows], [samplers[row] for row in rows], cut)
    drawn = tokens.tolist()
    sampled = [SampledToken(token) for token in drawn]
    reported = [row for row, sampler in enumerate(samplers) if sampler.sampling.top_logprobs is not None]
    if reported:
        counts = [samplers[row].sampling.top_logprobs or 0 for row in reported]
        for row, one in zip(reported, report(logits[reported], tokens[reported], counts), strict=True):
            sampled[row] = one
    for sampler, token in zip(samplers, drawn, strict=True):
        sampler.drawn(token)
    return sampled


def keep(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Return which tokens may be drawn, bool `[sequences, vocabulary]`; the most likely one always may.

    `top_k` keeps the most likely tokens and those as likely as the last of them. `top_p` keeps the smallest set of what
    is left that reaches it (arXiv 1904.09751, section 3.1), `min_p` what is likely enough beside the likeliest
    (arXiv 2407.01082).

    Args:
        logits: float `[sequences, vocabulary]`, divided by the temperature.
        top_k: int64 `[sequences, 1]`, 0 for all.
        top_p, min_p: float64 `[sequences, 1]`, 1 and 0 for all.
    """
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    last = ordered.gather(-1, (top_k - 1).clamp(0, logits.shape[1] - 1))
    ordered = ordered.masked_fill((ordered < last) & (top_k > 0), -torch.inf)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
    kept = ((before < top_p) | (top_p >= 1)) & (ordered > -torch.inf) & (probabilities >= min_p * probabilities[:, :1])
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter_(-1, tokens, kept)


def _changed(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    rows = [row for row, one in enumerate(samplers) if one.changes]
    if not rows:
        return logits
    changed = logits.to(torch.float32, copy=True)
    for row in rows:
        samplers[row].change(changed[row])
    return changed


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler], cut: bool) -> torch.Tensor:
    """Return tokens `[sequences]`: the first of each race.

    Args:
        cut: whether some tokens are kept from it.
    """
    settings = [(x.temperature, x.top_p, x.min_p, x.top_k) for x in (sampler.sampling for sampler in samplers)]
    columns = torch.tensor(settings, dtype=torch.float64, device=logits.device).unsqueeze(1)
    temperature, top_p, min_p, top_k = columns.unbind(-1)
    scaled = logits.float() / temperature.clamp(min=LEAST_TEMPERATURE).float()
    if cut:
        scaled = scaled.masked_fill(~keep(scaled, top_k.long(), top_p, min_p), -torch.inf)
    words = np.stack([sampler.words(logits.shape[1]) for sampler in samplers])
    # Uniform in (0, 1): near 0, where a race is decided, float32 is finer than the words are. 1 would never arrive.
    uniform = torch.from_numpy(words.astype(np.float32)).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    times = uniform.neg_().log1p_().neg_().to(logits.device)
    # log p_i - log q_i, without what all tokens have in common.
    return scaled.sub_(times.log_()).argmax(dim=-1)


def report(logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> list[SampledToken]:
    """Return tokens `[tokens]` with their log-probabilities, each with the `counts` most likely ones in its place.

    Args:
        logits: float `[tokens, vocabulary]`.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    drawn = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
    values, best = logprobs.topk(min(max(counts), logprobs.shape[1]))
    rows = zip(tokens.tolist(), drawn, best.tolist(), values.tolist(), counts, strict=True)
    return [
        SampledToken(token, logprob, tuple(zip(top[:count], near[:count], strict=True)))
        for token, logprob, top, near, count in rows
    ]
