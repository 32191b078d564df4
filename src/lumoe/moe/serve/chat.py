"""The answer to a conversation: its parts told apart, in the objects of OpenAI's chat interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lumoe.moe.serve.answers import Answer
from lumoe.moe.serve.channels import reader_of
from lumoe.moe.serve.constraints import Constraint, Freedom
from lumoe.moe.serve.errors import ApiError
from lumoe.moe.serve.generation import Piece
from lumoe.moe.serve.prompts import ChatPrompt, Prompts
from lumoe.moe.serve.reading import Part, Reader, Text, Thought
from lumoe.moe.serve.tools import Call


@dataclass(frozen=True)
class NamedCall(Call):
    """A call with its name in the conversation."""

    id: str = ""


@dataclass(frozen=True)
class Said(Piece):
    """A piece with the parts that are certain now."""

    parts: tuple[Part, ...] = ()


class ChatAnswer(Answer):
    """The answer to a conversation, each choice with a reader of its own."""

    def __init__(self, model: str, prompts: Prompts, prompt: ChatPrompt, top: int | None, parallel: bool) -> None:
        """Begin an answer.

        Args:
            top: how many alternatives each token is reported with; None reports no log-probabilities.
            parallel: whether a choice may have more than one call; else the first one ends it.
        """
        super().__init__("chat", model, prompts, top)
        self.prompt, self.parallel = prompt, parallel
        self.tokens = prompts.shown_by(prompt.manner)
        self._readers: dict[int, Reader] = {}
        self._calls: dict[int, int] = {}

    def read(self, choice: int, piece: Piece) -> Said:
        """Tell a piece apart; a choice that called something ends with "tool_calls"."""
        parts = list[Part]()
        if choice not in self._readers:
            self._readers[choice] = reader_of(self.prompt.manner)
            parts += self._readers[choice].push(self.prompt.begun)
        reader, finish = self._readers[choice], piece.finish
        parts += reader.push(piece.text)
        if finish is not None:
            parts += reader.finish()
        parts = [NamedCall(part.name, part.arguments, self._new_id()) if isinstance(part, Call) else part
                 for part in parts]  # fmt: skip
        first = next((place for place, part in enumerate(parts) if isinstance(part, Call)), None)
        if first is not None and not self.parallel:
            parts, finish = parts[: first + 1], "tool_calls"
            self.generations[choice].cancel()
        called = self._calls.get(choice, 0) + sum(isinstance(part, Call) for part in parts)
        self._calls[choice] = called
        if called and finish == "stop":
            finish = "tool_calls"
        return Said(piece.text, piece.sampled, finish, piece.stop, tuple(parts))

    def held_to(self, asked: Constraint | None) -> tuple[Constraint | None, Freedom]:
        """Return what the answer is held to: a call where one has to come, or else what the request asks for.

        Raises:
            ApiError: the model may call tools, and no token of its own begins a call.
        """
        if self.prompt.must_call:
            return self.prompt.call, Freedom()
        if asked is not None and self.prompt.manner.form is not None and not self.prompt.freedom.calls:
            text = (
                "this model's calls cannot be told from an answer of a form: leave 'tools' out, or 'tool_choice': none"
            )
            raise ApiError(400, f"'{asked.field}': {text}", asked.field.partition(".")[0], "unsupported_parameter")
        return asked, self.prompt.freedom

    def content(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the message of a choice that was not streamed."""
        parts = parts_of(pieces)
        calls = [part for part in parts if isinstance(part, NamedCall)]
        text = "".join(part.text for part in parts if isinstance(part, Text))
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
        message["refusal"] = None
        if thought := "".join(part.text for part in parts if isinstance(part, Thought)):
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [_function(call) for call in calls]
        return {"message": message}

    def opening(self) -> list[dict[str, Any]]:
        """Return who is speaking."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, {"delta": delta}, None, None) for index in range(len(self.generations))]

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return a chunk for each part; a call is its name first, then its arguments."""
        deltas = list[dict[str, Any]]()
        parts = parts_of([piece])
        number = self._calls.get(index, 0) - sum(isinstance(part, Call) for part in parts)
        for part in parts:
            if isinstance(part, Text):
                deltas.append({"content": part.text})
            elif isinstance(part, Thought):
                deltas.append({"reasoning_content": part.text})
            elif isinstance(part, NamedCall):
                named = _function(replace(part, arguments=""))
                deltas.append({"tool_calls": [{"index": number, **named}]})
                deltas.append({"tool_calls": [{"index": number, "function": {"arguments": part.arguments}}]})
                number += 1
        if not deltas and (piece.finish or self.top is not None):
            deltas.append({})
        logprobs = [self._logprobs(list(piece.sampled)), *[None] * len(deltas)]
        finish = [*[None] * (len(deltas) - 1), piece.finish]
        return [
            self._chunk(index, {"delta": delta}, logprobs[place], finish[place]) for place, delta in enumerate(deltas)
        ]

    def _new_id(self) -> str:
        return self.prompts.form.new_id()


def parts_of(pieces: Sequence[Piece]) -> list[Part]:
    """Return the parts of pieces in their order."""
    return [part for piece in pieces if isinstance(piece, Said) for part in piece.parts]


def _function(call: NamedCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
