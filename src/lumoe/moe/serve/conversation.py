"""A conversation: its turns, the tools that the model may call, and how a chat template wants to see both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Names that every template can write: OpenAI's, and dots as other servers take them.
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]+$", max_length=128)]


class FieldError(Exception):
    """A field asks for what the other ones do not allow."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"'{field}': {message}")
        self.field = field


def text_of(value: Any) -> Any:
    """Return a content made of parts as its text; what is no list of parts is returned as it is.

    Raises:
        ValueError: a part is something else than text.
    """
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ValueError(f"parts are text only; this server has no model that reads '{str(kind)[:40]}'")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise ValueError(f"a part of type '{kind}' needs its text")
        texts.append(text)
    return "".join(texts)


class TextPart(BaseModel):
    """Part of a message."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class Returned(BaseModel):
    """What a client may have from an answer: a field that nobody knows is refused, unless there is nothing in it."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: one for key, one in value.items() if key in cls.model_fields or one not in (None, [], {}, "")}


class CalledFunction(Returned):
    """What the model called, as it was answered."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str | None = Field(default="{}", description="an object as JSON")

    def flat(self) -> dict[str, Any]:
        """Return name and arguments; these as an object, which is what templates write out."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        return {"name": self.name, "arguments": arguments if isinstance(arguments, dict) else self.arguments}


class ToolCall(Returned):
    """A call in a turn of the assistant."""

    id: str | None = Field(default=None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(default=None, description="accepted, not used: clients that gather a stream keep it")


class Message(Returned):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: Annotated[list[ToolCall], Field(max_length=256)] | None = None
    tool_call_id: str | None = Field(default=None, max_length=256)
    function_call: CalledFunction | None = Field(default=None, description="deprecated: a call without an id")
    reasoning_content: str | None = Field(default=None, description="shown to templates that place it")
    thinking: str | None = Field(default=None, description="another name of `reasoning_content`")
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return text_of(value)

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a turn of the {self.role} needs its content")
        return self

    def flat(self) -> dict[str, Any]:
        """Return the turn as chat templates want it."""
        flat: dict[str, Any] = {"role": "tool" if self.role == "function" else self.role}
        # Most templates add up texts and would write "None" or fail.
        flat["content"] = self.content if isinstance(self.content, str) else self.refusal or ""
        calls = [
            {"id": call.id, "type": "function", "function": call.function.flat()} for call in self.tool_calls or ()
        ]
        if self.function_call is not None:
            calls.append({"id": None, "type": "function", "function": self.function_call.flat()})
        if calls:
            flat["tool_calls"] = calls
        if thought := self.reasoning_content or self.thinking:
            # Templates know it by one name or the other.
            flat["reasoning_content"] = flat["thinking"] = thought
        if flat["role"] == "tool":
            flat |= {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        return flat


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="a JSON schema of the arguments")
    strict: bool | None = Field(
        default=None, description="whether a call that has to come is refused if its schema cannot be held wholly"
    )


class Tool(BaseModel):
    """A tool; functions are the only kind."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function

    def flat(self) -> dict[str, Any]:
        """Return the tool as chat templates want it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        function.setdefault("parameters", {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: ToolName


class NamedTool(BaseModel):
    """The tool that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


@dataclass(frozen=True)
class Conversation:
    """What a chat template lays out, whichever interface it came by.

    Attributes:
        must_call: whether the answer has to be a call.
        only: the function that has to be called; None is any.
        parallel: whether more than one call may be answered.
        options: values for the template, such as `enable_thinking`.
        continued: whether the answer goes on with the last turn.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    must_call: bool = False
    only: str | None = None
    parallel: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    continued: bool = False

    def turns(self) -> list[dict[str, Any]]:
        """Return the turns; an answer to a call has the called function's name, which some templates write."""
        turns, names = [], dict[str, str]()
        for message in self.messages:
            turn = message.flat()
            names |= {call["id"]: call["function"]["name"] for call in turn.get("tool_calls", ()) if call["id"]}
            if turn["role"] == "tool" and turn.get("tool_call_id") in names:
                turn.setdefault("name", names[turn["tool_call_id"]])
            turns.append(turn)
        return turns

    def parameters(self) -> dict[str, dict[str, Any]]:
        """Return the schema of each function's arguments, by name."""
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools}


def chosen(
    choice: str | NamedTool | None, tools: Sequence[Tool] | None, messages: Sequence[Message], parallel: bool | None
) -> Conversation:
    """Return the conversation that `tool_choice` makes of messages and tools; with "none" no tool is shown.

    Raises:
        FieldError: a call is asked for that no tool can answer.
    """
    only = choice.function.name if isinstance(choice, NamedTool) else None
    must = only is not None or choice == "required"
    if only is not None and only not in {tool.function.name for tool in tools or ()}:
        raise FieldError("tool_choice", f"'{only}' is none of the tools")
    if must and not tools:
        raise FieldError("tool_choice", "a call is required, but there are no tools")
    shown = () if choice == "none" else tuple(tools or ())
    return Conversation(messages, shown, must, only, parallel is not False)
