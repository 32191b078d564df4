"""The answer to one request while it is made: events of its sequences in, OpenAI's objects out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lumoe.moe.serve.generation import Event, Failure, Generation, Piece
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.serve.sampling import SampledToken
from lumoe.moe.serve.schemas import PromptDetails, Usage

Kind = Literal["completion", "chat"]


class GenerationError(Exception):
    """The engine failed while it made an answer."""


@dataclass
class Answer:
    """The sequences of one request and the queue in which their pieces arrive.

    Attributes:
        top: how many alternatives each token is reported with; None reports no log-probabilities.
        prompt_tokens: of all prompts; choices of one prompt count it once.
    """

    kind: Kind
    model: str
    prompts: Prompts
    top: int | None
    prompt_tokens: int = 0
    generations: list[Generation] = field(default_factory=list)
    queue: asyncio.Queue[tuple[int, Event]] = field(default_factory=asyncio.Queue)
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)

    def sink(self, choice: int) -> Any:
        """Return what a generation calls with its events."""
        return lambda event: self.queue.put_nowait((choice, event))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (choice, piece) as they arrive until every choice has ended.

        Raises:
            GenerationError: the engine failed.
        """
        open_choices = len(self.generations)
        while open_choices:
            choice, event = await self.queue.get()
            if isinstance(event, Failure):
                raise GenerationError(event.message)
            open_choices -= event.finish is not None
            yield choice, event

    def cancel(self) -> None:
        """Stop what is still being made."""
        for generation in self.generations:
            generation.cancel()

    def usage(self) -> Usage:
        """Count tokens, as OpenAI does: those of all choices, but those of a prompt once."""
        prompt, completion = self.prompt_tokens, sum(generation.made for generation in self.generations)
        # Choices of one prompt share it among themselves: what the first of them found counts.
        first = {id(one.prompt): one.reused for one in reversed(self.generations)}
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(cached_tokens=sum(first.values())),
        )

    def whole(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        """Return the complete object of an answer that was not streamed."""
        choices = []
        for index, pieces in sorted(texts.items()):
            text = "".join(piece.text for piece in pieces)
            sampled = [one for piece in pieces for one in piece.sampled]
            content: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self.kind == "chat"
                else {"text": text}
            )
            finish = pieces[-1].finish
            choices.append({"index": index, **content, "logprobs": self._logprobs(sampled), "finish_reason": finish})
        return {**self._head(streamed=False), "choices": choices, "usage": self.usage().model_dump()}

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks that a stream begins with: in a chat, who is speaking."""
        if self.kind == "completion":
            return []
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, {"delta": delta}, None, None) for index in range(len(self.generations))]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return one piece as a chunk of a stream."""
        content: dict[str, Any] = (
            {"delta": {"content": piece.text} if piece.text else {}} if self.kind == "chat" else {"text": piece.text}
        )
        return self._chunk(index, content, self._logprobs(list(piece.sampled)), piece.finish)

    def closing(self) -> dict[str, Any]:
        """Return the last chunk of a stream that reports its usage."""
        return {**self._head(streamed=True), "choices": [], "usage": self.usage().model_dump()}

    def _chunk(self, index: int, content: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(streamed=True), "choices": [choice]}

    def _head(self, streamed: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.kind == "chat":
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, sampled: list[SampledToken]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_entry(one) for one in sampled], "refusal": None}
        texts = [self.prompts.token_text(one.token) for one in sampled]
        tops = [self._named(one.top[: self.top]) for one in sampled]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in sampled],
            "top_logprobs": tops,
            "text_offset": [one.offset for one in sampled],
        }

    def _named(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Return log-probabilities by the tokens' texts; of two tokens with one text the second is named by its id."""
        named: dict[str, float] = {}
        for token, value in top:
            text = self.prompts.token_text(token)
            named[f"token_id:{token}" if text in named else text] = value
        return named

    def _chat_entry(self, one: SampledToken) -> dict[str, Any]:
        def entry(token: int, value: float) -> dict[str, Any]:
            return {
                "token": self.prompts.token_text(token),
                "logprob": value,
                "bytes": list(self.prompts.token_bytes(token)),
            }

        top = [entry(token, value) for token, value in one.top[: self.top]]
        return {**entry(one.token, one.logprob), "top_logprobs": top}
