"""Anthropic's interface: its requests as conversations, and answers in its objects and events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lumoe.moe.planning.plan import Preference
from lumoe.moe.serve.answers import event
from lumoe.moe.serve.body import Body, unused
from lumoe.moe.serve.chat import ChatAnswer, NamedCall, parts_of
from lumoe.moe.serve.conversation import ToolName, text_of
from lumoe.moe.serve.errors import messages_error
from lumoe.moe.serve.generation import Piece
from lumoe.moe.serve.prompts import ChatPrompt, Prompts
from lumoe.moe.serve.reading import Text, Thought
from lumoe.moe.serve.schemas import MAX_TOOLS, ChatRequest, StopString

BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


class Block(BaseModel):
    """Part of a message: a text, a thought, a call, or what came of a call."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    text: str = ""
    thinking: str = ""
    id: str | None = Field(default=None, max_length=256)
    name: str = Field(default="", max_length=256)
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str | None = Field(default=None, max_length=256)
    content: str | list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return text_of(value)

    def call(self) -> dict[str, Any]:
        """Return a `tool_use` as a call of the chat interface."""
        return {"id": self.id, "function": {"name": self.name, "arguments": json.dumps(self.input)}}


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @field_validator("content", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        for block in value if isinstance(value, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if kind not in BLOCKS:
                raise ValueError(f"blocks are text and tools only; this server has none that reads '{str(kind)[:40]}'")
        return value

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the turns of the chat interface that this is: what came of a call is one by itself there."""
        if isinstance(self.content, str):
            yield {"role": self.role, "content": self.content}
            return
        texts: list[str] = []
        if self.role == "assistant":
            calls = [block.call() for block in self.content if block.type == "tool_use"]
            thought = "".join(block.thinking for block in self.content if block.type == "thinking")
            text = "".join(block.text for block in self.content if block.type == "text")
            yield {"role": "assistant", "content": text, "tool_calls": calls, "reasoning_content": thought or None}
            return
        for block in self.content:
            if block.type == "tool_result":
                if texts:
                    yield {"role": self.role, "content": "\n".join(texts)}
                    texts = []
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content or ""}
            elif block.type == "text":
                texts.append(block.text)
        if texts:
            yield {"role": self.role, "content": "\n".join(texts)}


class MessagesTool(BaseModel):
    """A function that the model may call; tools that run at Anthropic do not run here."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]

    def tool(self) -> dict[str, Any]:
        """Return the tool as the chat interface has it."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": function}


class MessagesChoice(BaseModel):
    """Which tool the model may or must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    """Whether the model is to think; a template that has a place for it is told so."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(max_length=32)


class OutputConfig(BaseModel):
    """How the answer is to be."""

    model_config = ConfigDict(extra="forbid")

    effort: Annotated[str, Field(max_length=32)] | None = None
    format: dict[str, Any] | None = None


class CountRequest(Body):
    """`POST /v1/messages/count_tokens`."""

    model: str = Field(max_length=256)
    messages: list[Turn] = Field(min_length=1, max_length=4096)
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessagesChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = unused()
    speed: str | None = unused()

    @field_validator("system", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return text_of(value)

    def chat(self) -> ChatRequest:
        """Return the request as the chat interface has it.

        Raises:
            ValidationError: the chat interface does not take it.
        """
        return ChatRequest.model_validate({key: value for key, value in self._chat().items() if value is not None})

    def _chat(self) -> dict[str, Any]:
        turns = [message for turn in self.messages for message in turn.messages()]
        choice = self.tool_choice
        output = self.output_config or OutputConfig()
        chosen: Any = None
        if choice is not None:
            chosen = {"any": "required", "tool": {"type": "function", "function": {"name": choice.name}}}.get(
                choice.type, choice.type
            )
        form = output.format
        if form is not None and form.get("type") == "json_schema":
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema")}}
        return {
            "model": self.model,
            "messages": [*([{"role": "system", "content": self.system}] if self.system else []), *turns],
            "tools": [tool.tool() for tool in self.tools] if self.tools else None,
            "tool_choice": chosen,
            "parallel_tool_calls": not choice.disable_parallel_tool_use if choice else None,
            # A last turn of the assistant is the beginning of the answer.
            "continue_final_message": bool(turns) and turns[-1]["role"] == "assistant",
            "chat_template_kwargs": {"enable_thinking": self.thinking.type != "disabled"} if self.thinking else None,
            "reasoning_effort": output.effort,
            "response_format": form,
        }


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, strict=True)]
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    temperature: float | None = Field(default=1.0, ge=0, le=2, allow_inf_nan=False, strict=True)
    top_p: float | None = Field(default=1.0, gt=0, le=1, allow_inf_nan=False, strict=True)
    top_k: Annotated[int, Field(ge=-1, lt=2**31, strict=True)] | None = 0
    preference: Preference | None = None
    metadata: dict[str, Any] | None = unused()
    service_tier: str | None = unused()
    inference_geo: str | None = unused()

    def _chat(self) -> dict[str, Any]:
        same = ("max_tokens", "stream", "temperature", "top_p", "top_k", "preference")
        return {**super()._chat(), "stop": self.stop_sequences or None, **{key: getattr(self, key) for key in same}}


class MessageAnswer(ChatAnswer):
    """An answer as Anthropic's clients expect it: blocks, one after the other."""

    def __init__(self, model: str, prompts: Prompts, prompt: ChatPrompt, parallel: bool) -> None:
        super().__init__(model, prompts, prompt, None, parallel)
        self.id = "msg_" + secrets.token_hex(12)
        self._blocks = list[dict[str, Any]]()
        self._ended: Piece | None = None

    def whole(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        """Return the complete message."""
        for piece in texts.get(0, []):
            self.chunks(0, piece)
        return {**self._message(), **self._reason(), "usage": self._usage()}

    def opening(self) -> list[dict[str, Any]]:
        """Return the message without a block."""
        return [{"type": "message_start", "message": self._message()}]

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the events of a piece; each part goes on with the open block or begins another."""
        found = list[dict[str, Any]]()
        for part in parts_of([piece]):
            if isinstance(part, Text):
                found += [*self._open({"type": "text", "text": ""}), self._delta("text_delta", text=part.text)]
                self._blocks[-1]["text"] += part.text
            elif isinstance(part, Thought):
                found += self._open({"type": "thinking", "thinking": "", "signature": ""})
                found.append(self._delta("thinking_delta", thinking=part.text))
                self._blocks[-1]["thinking"] += part.text
            elif isinstance(part, NamedCall):
                found += self._open({"type": "tool_use", "id": part.id, "name": part.name, "input": {}}, anew=True)
                found.append(self._delta("input_json_delta", partial_json=part.arguments))
                self._blocks[-1]["input"] = json.loads(part.arguments)
        if piece.finish:
            self._ended = piece
            found += self._close()
        return found

    def last(self, include_usage: bool) -> list[dict[str, Any]]:
        """Return why the message ended, and its usage."""
        return [{"type": "message_delta", "delta": self._reason(), "usage": self._usage()}, {"type": "message_stop"}]

    def failed(self, message: str) -> dict[str, Any]:
        """Return the event of a failure."""
        return messages_error(500, message)

    def event(self, chunk: dict[str, Any]) -> str:
        """Return an event, named by its type."""
        return event(chunk, chunk["type"])

    def end(self) -> str:
        """Return nothing: the last event says that it is the last."""
        return ""

    def _message(self) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        return {**head, "content": self._blocks[:], "stop_reason": None, "stop_sequence": None, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        usage = self.usage()
        # Here tokens that were there already are not among those of the input.
        cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "output_tokens": usage.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }

    def _reason(self) -> dict[str, str | None]:
        finish, stop = (self._ended.finish, self._ended.stop) if self._ended else (None, None)
        if finish == "stop" and stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        reason = {"tool_calls": "tool_use", "length": "max_tokens"}.get(finish or "", "end_turn")
        return {"stop_reason": reason, "stop_sequence": None}

    def _open(self, block: dict[str, Any], anew: bool = False) -> list[dict[str, Any]]:
        if self._blocks and self._blocks[-1]["type"] == block["type"] and not anew:
            return []
        ended = self._close()
        self._blocks.append(block)
        return [*ended, {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": {**block}}]

    def _close(self) -> list[dict[str, Any]]:
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}] if self._blocks else []

    def _delta(self, kind: str, **more: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": {"type": kind, **more}}
