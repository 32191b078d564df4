"""OpenAI's responses interface: its requests as conversations, and answers as items and typed events.

Nothing is stored: a request has the whole conversation.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from lumoe.moe.planning.plan import Preference
from lumoe.moe.serve.answers import event
from lumoe.moe.serve.body import Body, unused
from lumoe.moe.serve.chat import ChatAnswer, NamedCall, parts_of
from lumoe.moe.serve.conversation import ToolName, text_of
from lumoe.moe.serve.generation import Piece
from lumoe.moe.serve.prompts import ChatPrompt, Prompts
from lumoe.moe.serve.reading import Text, Thought
from lumoe.moe.serve.schemas import MAX_TOOLS, ChatRequest

UNSUPPORTED = {
    "previous_response_id": "nothing is stored here; send the items of the conversation again",
    "conversation": "nothing is stored here; send the items of the conversation again",
    "prompt": "no prompts are stored here; write it in 'instructions' and 'input'",
    "context_management": "the conversation is taken as it is sent",
    "moderation": "nothing is moderated here",
}


class Item(BaseModel):
    """A turn, a call, what came of one, or a thought."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = Field(default=None, max_length=256)
    name: str = Field(default="", max_length=256)
    arguments: str = "{}"
    output: str | list[dict[str, Any]] = ""

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in ("message", "function_call", "function_call_output", "reasoning"):
            raise ValueError(f"items are messages, calls of functions and thoughts; this is '{str(value)[:40]}'")
        return value

    @field_validator("content", "output", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            value = [{**part, "type": "text"} if part.get("type") == "reasoning_text" else part for part in value]
        return text_of(value)


class ResponseTool(BaseModel):
    """A function that the model may call; tools that run at OpenAI do not run here."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        default=None, description="whether a call that has to come is refused if its schema cannot be held wholly"
    )


class ResponseChoice(BaseModel):
    """The tool that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    name: ToolName


class TextConfig(BaseModel):
    """How the text of an answer is to be."""

    model_config = ConfigDict(extra="forbid")

    format: dict[str, Any] | None = None
    verbosity: str | None = unused()


class Reasoning(BaseModel):
    """How much the model is to think; a template that has a place for it is told so."""

    model_config = ConfigDict(extra="ignore")

    effort: Annotated[str, Field(max_length=32)] | None = None


class ResponsesRequest(Body):
    """`POST /v1/responses`."""

    model: str = Field(max_length=256)
    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseChoice | None = None
    parallel_tool_calls: Annotated[bool, Field(strict=True)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    temperature: float | None = Field(default=1.0, ge=0, le=2, allow_inf_nan=False, strict=True)
    top_p: float | None = Field(default=1.0, gt=0, le=1, allow_inf_nan=False, strict=True)
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False
    preference: Preference | None = None
    store: bool | None = Field(default=None, description="accepted; nothing is stored")
    metadata: dict[str, str] | None = unused()
    background: Literal[False] | None = Field(default=None, description="answers are made while the client waits")
    truncation: Literal["disabled"] | None = Field(default=None, description="what does not fit is refused")
    top_logprobs: Literal[0] | None = Field(default=None, description="not supported")
    include: list[Literal["reasoning.encrypted_content"]] | None = unused()
    stream_options: dict[str, bool] | None = unused()
    max_tool_calls: int | None = unused()
    service_tier: str | None = unused()
    prompt_cache_key: str | None = unused()
    prompt_cache_retention: str | None = unused()
    safety_identifier: str | None = unused()
    user: str | None = unused()
    previous_response_id: Any = Field(default=None, description="not supported")
    conversation: Any = Field(default=None, description="not supported")
    prompt: Any = Field(default=None, description="not supported")
    context_management: Any = Field(default=None, description="not supported")
    moderation: Any = Field(default=None, description="not supported")

    @field_validator(*UNSUPPORTED, mode="before")
    @classmethod
    def _not_supported(cls, value: Any, info: ValidationInfo) -> None:
        if value is not None:
            raise ValueError(UNSUPPORTED[info.field_name or ""])

    def chat(self) -> ChatRequest:
        """Return the request as the chat interface has it.

        Raises:
            ValidationError: the chat interface does not take it.
        """
        choice: Any = self.tool_choice
        if isinstance(choice, ResponseChoice):
            choice = {"type": "function", "function": {"name": choice.name}}
        form = self.text.format if self.text else None
        if form is not None and form.get("type") == "json_schema":
            schema = {key: value for key, value in form.items() if key != "type"}
            form = {"type": "json_schema", "json_schema": schema}
        same = ("model", "parallel_tool_calls", "temperature", "top_p", "stream", "preference")
        fields = {
            "messages": self._messages(),
            "tools": [
                {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
                for tool in self.tools or ()
            ],
            "tool_choice": choice,
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": form,
            **{key: getattr(self, key) for key in same},
        }
        return ChatRequest.model_validate({key: value for key, value in fields.items() if value is not None})

    def _messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if self.instructions:
            found.append({"role": "system", "content": self.instructions})
        thought = ""
        for item in [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input:
            if item.type == "reasoning":
                thought += item.content if isinstance(item.content, str) else ""
                continue
            if item.type == "function_call_output":
                found.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
                continue
            if item.type == "message" and item.role != "assistant":
                found.append({"role": item.role or "user", "content": item.content or ""})
                continue
            # What the model said and the calls that it made are one turn in a chat template.
            if not found or found[-1]["role"] != "assistant" or item.type == "message":
                found.append({"role": "assistant", "content": "", "tool_calls": [], "reasoning_content": thought})
                thought = ""
            if item.type == "message":
                found[-1]["content"] = item.content or ""
            else:
                call = {"name": item.name, "arguments": item.arguments}
                found[-1]["tool_calls"].append({"id": item.call_id, "function": call})
        return found


class ResponseAnswer(ChatAnswer):
    """An answer as items, one after the other, and as the events of their making."""

    def __init__(
        self, model: str, prompts: Prompts, prompt: ChatPrompt, parallel: bool, asked: ResponsesRequest
    ) -> None:
        super().__init__(model, prompts, prompt, None, parallel)
        self.id = "resp_" + secrets.token_hex(12)
        self._items, self._asked = list[dict[str, Any]](), asked
        self._ended: Piece | None = None
        self._count = 0

    def whole(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        """Return the complete response."""
        for piece in texts.get(0, []):
            self.chunks(0, piece)
        return self._response()

    def opening(self) -> list[dict[str, Any]]:
        """Return the response without an item."""
        response = self._response()
        return [self._event("created", response=response), self._event("in_progress", response=response)]

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the events of a piece; each part goes on with the open item or begins another."""
        found = list[dict[str, Any]]()
        for part in parts_of([piece]):
            if isinstance(part, NamedCall):
                item: dict[str, Any] = {
                    "type": "function_call",
                    "id": f"fc_{secrets.token_hex(12)}",
                    "call_id": part.id,
                }
                found += self._open({**item, "name": part.name, "arguments": ""}, anew=True)
                self._items[-1]["arguments"] = part.arguments
                found.append(self._of_item("function_call_arguments.delta", delta=part.arguments))
                continue
            if isinstance(part, Thought):
                content: dict[str, Any] = {"type": "reasoning_text", "text": ""}
                item = {"type": "reasoning", "id": f"rs_{secrets.token_hex(12)}", "summary": []}
                kind, more = "reasoning_text", dict[str, Any]()
            else:
                content = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
                item = {"type": "message", "id": f"msg_{secrets.token_hex(12)}", "role": "assistant"}
                kind, more = "output_text", {"logprobs": []}
            assert isinstance(part, Text | Thought)
            if opened := self._open({**item, "content": []}):
                found += opened
                found.append(self._of_item("content_part.added", content_index=0, part=dict(content)))
                self._items[-1]["content"].append(content)
            self._items[-1]["content"][0]["text"] += part.text
            found.append(self._of_item(f"{kind}.delta", content_index=0, delta=part.text, **more))
        if piece.finish:
            self._ended = piece
            found += self._close()
        return found

    def last(self, include_usage: bool) -> list[dict[str, Any]]:
        """Return the complete response."""
        response = self._response()
        return [self._event(response["status"], response=response)]

    def failed(self, message: str) -> dict[str, Any]:
        """Return the event of a failure."""
        error = {"code": "server_error", "message": message}
        return self._event("failed", response={**self._response(), "status": "failed", "error": error})

    def event(self, chunk: dict[str, Any]) -> str:
        """Return an event, named by its type."""
        return event(chunk, chunk["type"])

    def end(self) -> str:
        """Return nothing: the last event says that it is the last."""
        return ""

    def _response(self) -> dict[str, Any]:
        asked, usage = self._asked, self.usage()
        finish = self._ended.finish if self._ended else None
        status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
        choice = asked.tool_choice or "auto"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if finish == "length" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": [dict(item) for item in self._items],
            "parallel_tool_calls": self.parallel,
            "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": (asked.text.format if asked.text else None) or {"type": "text"}},
            "tool_choice": choice.model_dump() if isinstance(choice, ResponseChoice) else choice,
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None
            if finish is None
            else {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {**usage.prompt_tokens_details.model_dump(), "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
            "user": asked.user,
        }

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._count += 1
        return {"type": f"response.{kind}", "sequence_number": self._count - 1, **more}

    def _of_item(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **more)

    def _open(self, item: dict[str, Any], anew: bool = False) -> list[dict[str, Any]]:
        if self._items and self._items[-1]["type"] == item["type"] and not anew:
            return []
        ended = self._close()
        self._items.append({**item, "status": "in_progress"})
        added = {**item, "status": "in_progress"}
        return [*ended, self._event("output_item.added", output_index=len(self._items) - 1, item=added)]

    def _close(self) -> list[dict[str, Any]]:
        if not self._items:
            return []
        item, found = self._items[-1], list[dict[str, Any]]()
        cut = self._ended is not None and self._ended.finish == "length"
        item["status"] = "incomplete" if cut else "completed"
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            found.append(self._of_item("function_call_arguments.done", **done))
        else:
            (content,) = item["content"]
            kind = content["type"]
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            found.append(self._of_item(f"{kind}.done", content_index=0, text=content["text"], **more))
            found.append(self._of_item("content_part.done", content_index=0, part=dict(content)))
        found.append(self._event("output_item.done", output_index=len(self._items) - 1, item=dict(item)))
        return found
