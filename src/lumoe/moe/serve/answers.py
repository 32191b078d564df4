"""The answer to one request while it is made: events of its sequences in, OpenAI's objects out."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lumoe.moe.serve.constraints import Constraint, Freedom
from lumoe.moe.serve.detokenizer import TokenBytes
from lumoe.moe.serve.errors import error_body
from lumoe.moe.serve.generation import Event, Failure, Generation, Piece
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.serve.sampling import SampledToken
from lumoe.moe.serve.schemas import PromptDetails, Usage

Kind = Literal["completion", "chat"]


def event(value: dict[str, Any] | str, name: str | None = None) -> str:
    """Return one server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class GenerationError(Exception):
    """The engine failed while it made an answer."""


@dataclass
class Answer:
    """The sequences of one request and the queue in which their pieces arrive.

    Attributes:
        top: how many alternatives each token is reported with; None reports no log-probabilities.
        prompt_tokens: of all prompts; choices of one prompt count it once.
        tokens: what each token adds to the text.
    """

    kind: Kind
    model: str
    prompts: Prompts
    top: int | None
    prompt_tokens: int = 0
    generations: list[Generation] = field(default_factory=list)
    queue: asyncio.Queue[tuple[int, Event]] = field(default_factory=asyncio.Queue)
    id: str = field(init=False)
    tokens: TokenBytes = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.tokens = self.prompts.tokens
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)

    def add(self, generation: Generation) -> None:
        """Take one more sequence."""
        self.generations.append(generation)

    def sink(self, choice: int) -> Any:
        """Return what a generation calls with its events."""
        return lambda event: self.queue.put_nowait((choice, event))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (choice, piece) as they arrive until every choice has ended.

        Raises:
            GenerationError: the engine failed.
        """
        ended = set[int]()
        while len(ended) < len(self.generations):
            choice, event = await self.queue.get()
            if choice in ended:
                continue
            if isinstance(event, Failure):
                raise GenerationError(event.message)
            piece = self.read(choice, event)
            if piece.finish is not None:
                ended.add(choice)
            yield choice, piece

    def read(self, choice: int, piece: Piece) -> Piece:
        """Return a piece as it is told; one with a `finish` ends its choice."""
        return piece

    def held_to(self, asked: Constraint | None) -> tuple[Constraint | None, Freedom]:
        """Return what the answer is held to where the request asks for `asked`, and what it may be besides."""
        return asked, Freedom()

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
            sampled = [one for piece in pieces for one in piece.sampled]
            finish = pieces[-1].finish
            choices.append(
                {
                    "index": index,
                    **self.content(index, pieces),
                    "logprobs": self._logprobs(sampled),
                    "finish_reason": finish,
                }
            )
        return {**self._head(streamed=False), "choices": choices, "usage": self.usage().model_dump()}

    def content(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return what a choice that was not streamed has said."""
        return {"text": "".join(piece.text for piece in pieces)}

    def opening(self) -> list[dict[str, Any]]:
        """Return the chunks that a stream begins with."""
        return []

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return one piece as chunks of a stream."""
        return [self.chunk(index, piece)]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return one piece as a chunk of a stream."""
        return self._chunk(index, {"text": piece.text}, self._logprobs(list(piece.sampled)), piece.finish)

    def last(self, include_usage: bool) -> list[dict[str, Any]]:
        """Return the chunks that a stream ends with."""
        return [self.closing()] if include_usage else []

    def failed(self, message: str) -> dict[str, Any]:
        """Return the chunk that tells of a failure. The status line is long gone: OpenAI's clients raise it."""
        return error_body(500, message, code="generation_failed")

    def end(self) -> str:
        """Return the event behind the last chunk."""
        return event("[DONE]")

    def event(self, chunk: dict[str, Any]) -> str:
        """Return a chunk as an event."""
        return event(chunk)

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
        tops = [None if one.logprob is None else self._named(one.top[: self.top]) for one in sampled]
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
        def entry(token: int, value: float | None) -> dict[str, Any]:
            return {
                "token": self.prompts.token_text(token),
                "logprob": value,
                "bytes": list(self.prompts.token_bytes(token)),
            }

        top = [entry(token, value) for token, value in one.top[: self.top]]
        return {**entry(one.token, one.logprob), "top_logprobs": top}
