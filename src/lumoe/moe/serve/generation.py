"""One sequence being generated: its prompt, how it is sampled, and what it has come to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lumoe.moe.planning.plan import Preference
from lumoe.moe.serve.detokenizer import TextStream, TokenBytes
from lumoe.moe.serve.prompt_scores import PromptScores
from lumoe.moe.serve.sampling import SampledToken, Sampler, Sampling

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Piece:
    """Text that is ready, with the tokens that it is made of; `stop` is the stop string that ended it."""

    text: str
    sampled: tuple[SampledToken, ...]
    finish: Finish | None = None
    stop: str | None = None


@dataclass(frozen=True)
class Failure:
    """The sequence could not be finished."""

    message: str


Event = Piece | Failure


@dataclass
class Times:
    """Clock readings in seconds (monotonic); None until it happened."""

    arrived: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    last_token: float | None = None


class Generation:
    """A sequence from its prompt to its last token. The engine's thread drives it; `cancel` may come from anywhere.

    Attributes:
        tokens: prompt and answer so far.
        fed: of these, how many have been through the engine.
        scores: takes the prompt's log-probabilities, if they are wanted.
        logprob: of the tokens drawn, if they are reported: the sum.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        tokens: TokenBytes,
        sink: Callable[[Event], None],
        *,
        stops: Sequence[str] = (),
        end_tokens: frozenset[int] = frozenset(),
        preference: Preference | None = None,
    ) -> None:
        self.prompt, self.sampling, self.sink, self.preference = prompt, sampling, sink, preference
        self.tokens = list(prompt)
        self.sampler = Sampler(sampling, self.prompt, end_tokens)
        self.end_tokens = end_tokens
        self._names, self._stops = tokens, stops
        # A character has at most four bytes.
        self._text = TextStream(tokens, self.prompt[-4:], () if sampling.min_tokens else stops, sampling.show_stop)
        self._unreleased: deque[SampledToken] = deque()
        self.times = Times()
        self.slot: int | None = None
        self.fed = 0
        self.made = 0
        self.logprob = 0.0
        self.cancelled = False
        self.scores: PromptScores | None = None
        # Of the prompt, tokens whose keys and values were there; and the precisions that all so far were computed at.
        self.reused = 0
        self.precisions: bytes | None = None

    @property
    def decoding(self) -> bool:
        """Whether only the last token is yet to go through the engine."""
        return self.made > 0 and self.fed == len(self.tokens) - 1

    @property
    def unscored(self) -> bool:
        """Whether logits of the prompt are still wanted: keys and values that are known already do not give them."""
        return self.scores is not None and not self.scores.complete

    def cancel(self) -> None:
        """Ask for no more tokens."""
        self.cancelled = True

    def accept(self, sampled: SampledToken) -> Piece | None:
        """Take the next token; return what can be shown of it, or None while nothing can."""
        self.times.last_token = time.perf_counter()
        if self.times.first_token is None:
            self.times.first_token = self.times.last_token
        self.tokens.append(sampled.token)
        self.made += 1
        self.logprob += sampled.logprob or 0.0
        ended = sampled.token in self.end_tokens
        text = ""
        if not ended or (self.sampling.show_stop and sampled.token not in self._names.special):
            text = self._text.push(sampled.token)
            self._unreleased.append(replace(sampled, offset=self._text.begun))
        if self.made == self.sampling.min_tokens:
            self._text.look_for(self._stops)
        if ended or self._text.stopped or self.sampler.complete:
            finish: Finish | None = "stop"
        else:
            finish = "length" if self.made >= self.sampling.max_tokens else None
        if finish and not self._text.stopped:
            text += self._text.finish()
            finish = "stop" if self._text.stopped else finish
        shown = self._released(everything=finish is not None and not self._text.stopped)
        return Piece(text, shown, finish, self._text.stop) if text or finish else None

    def _released(self, everything: bool) -> tuple[SampledToken, ...]:
        """Tokens whose text has begun to appear."""
        found = []
        while self._unreleased and (everything or self._unreleased[0].offset < self._text.released):
            found.append(self._unreleased.popleft())
        return tuple(found)
