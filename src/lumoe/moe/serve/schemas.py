"""Requests and responses of OpenAI's completion and chat interfaces, as far as this server has them.

A parameter that would change the answer and is not supported is refused, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lumoe.moe.planning.plan import Preference
from lumoe.moe.serve.sampling import Sampling

TokenId = Annotated[int, Field(ge=0, strict=True)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False, strict=True)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False, strict=True)]
# A key of a JSON object is text.
BiasedToken = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
MAX_CHOICES = 32


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= letter <= "\udfff" for letter in value) if not value.isascii() else False
    if isinstance(value, dict):
        return any(_has_lone_surrogate(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))


class StreamOptions(BaseModel):
    """What a stream contains besides the text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(default=False, strict=True)
    include_obfuscation: bool = Field(default=False, strict=True)


class Request(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(max_length=256)
    temperature: float | None = Field(default=1.0, ge=0, le=2, allow_inf_nan=False, strict=True)
    top_p: float | None = Field(default=1.0, gt=0, le=1, allow_inf_nan=False, strict=True)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] | None = 1
    stream: Annotated[bool, Field(strict=True)] | None = False
    stream_options: StreamOptions | None = None
    preference: Preference | None = Field(
        default=None, description="what to plan for while this request runs; quality never uses quantised experts"
    )
    user: str | None = Field(default=None, description="accepted, not used")
    metadata: dict[str, str] | None = Field(default=None, description="accepted, not used")
    store: bool | None = Field(default=None, description="accepted, not used")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = Field(
        default=None, description="tokens that end the answer besides the model's own; they are not in its text"
    )
    frequency_penalty: Penalty | None = 0.0
    presence_penalty: Penalty | None = 0.0
    repetition_penalty: float | None = Field(default=1.0, ge=0.01, le=10, allow_inf_nan=False, strict=True)
    logit_bias: Annotated[dict[BiasedToken, Bias], Field(max_length=1024)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31, strict=True)] | None = Field(
        default=0, description="0 and -1 are no limit"
    )
    min_p: float | None = Field(default=0.0, ge=0, le=1, allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _of_characters(cls, value: Any) -> Any:
        # JSON can name half of a pair, as a client does that cuts a string within an emoji; no text has it.
        if _has_lone_surrogate(value):
            raise ValueError("a text holds half of a surrogate pair, which is no character")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, choice: int, max_tokens: int, top_logprobs: int | None) -> Sampling:
        """Return how the `choice`-th sequence is drawn: of equal prompts each has a random stream of its own."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
            sequence=choice,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((self.logit_bias or {}).items()),
        )


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    echo: Literal[False] | None = Field(default=None, description="not supported")
    suffix: Literal[""] | None = Field(default=None, description="not supported")
    best_of: Literal[1] | None = Field(default=None, description="not supported")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class TextPart(BaseModel):
    """Part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def flat(self) -> dict[str, str]:
        """Return role and text, as chat templates want them."""
        parts = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": parts}


class TextFormat(BaseModel):
    """The only form of an answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    response_format: TextFormat | None = Field(default=None, description="text only")
    tools: Annotated[list[dict[str, Any]], Field(max_length=0)] | None = Field(
        default=None, description="not supported"
    )
    tool_choice: Literal["none"] | None = Field(default=None, description="not supported")


class ModelCard(BaseModel):
    """An entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lumoe"


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptDetails(BaseModel):
    """Of the tokens of a prompt: those whose keys and values were there from an earlier one."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
