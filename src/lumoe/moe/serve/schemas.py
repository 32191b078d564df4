"""Requests and responses of OpenAI's completion and chat interfaces, as far as this server has them.

A parameter that would change the answer and is not supported is refused, not ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from lumoe.moe.planning.plan import Preference
from lumoe.moe.serve.body import unused
from lumoe.moe.serve.conversation import Conversation, FieldError, Message, NamedTool, Tool, chosen
from lumoe.moe.serve.sampling import Sampling
from lumoe.moe.serve.structured import Structured

TokenId = Annotated[int, Field(ge=0, strict=True)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False, strict=True)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False, strict=True)]
# A key of a JSON object is text.
BiasedToken = Annotated[int, Field(ge=0, lt=2**31)]
Switch = Annotated[bool, Field(strict=True)] | None
StopString = Annotated[str, Field(min_length=1, max_length=256)]
MAX_CHOICES = 32
MAX_TOOLS = 512


class StreamOptions(BaseModel):
    """What a stream contains besides the text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(default=False, strict=True)
    include_obfuscation: bool = Field(default=False, strict=True)


class Request(Structured):
    """What both kinds of request have in common."""

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
    service_tier: str | None = unused()
    prompt_cache_key: str | None = unused()
    prompt_cache_retention: str | None = unused()
    safety_identifier: str | None = unused()
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
    ignore_eos: Switch = Field(default=False, description="whether the model's own end tokens end nothing")
    min_tokens: Annotated[int, Field(ge=0, strict=True)] | None = Field(
        default=0, description="before so many tokens, none that ends the answer is drawn and no stop string ends it"
    )
    include_stop_str_in_output: Switch = Field(
        default=False, description="whether what ended the answer, a stop string or a stop token's text, is part of it"
    )
    skip_special_tokens: Switch = Field(default=True, description="whether special tokens are left out of the text")

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def drawn(self) -> int:
        """Return how many answers are drawn for each prompt."""
        return self.n or 1

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
            min_tokens=self.min_tokens or 0,
            show_stop=bool(self.include_stop_str_in_output),
        )


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[int, Field(ge=0, strict=True)] | None = Field(default=16, description="0 needs echo")
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    echo: Switch = Field(default=False, description="whether the prompt, with its log-probabilities, comes first")
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)] | None = Field(
        default=None, description="answers to draw, of which the n likeliest by log-probability per token are returned"
    )
    suffix: str | None = Field(default=None, description="not supported")
    add_special_tokens: Switch = Field(
        default=True, description="whether a prompt that is a text gets what the tokenizer puts before one"
    )

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("this server continues texts and fills no gap: give what comes before as the prompt")
        return value

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    def drawn(self) -> int:
        """Return how many answers are drawn for each prompt.

        Raises:
            FieldError: fields contradict each other.
        """
        wanted = super().drawn()
        drawn = self.best_of or wanted
        if drawn < wanted:
            raise FieldError("best_of", f"{drawn} answers are fewer than the {wanted} that 'n' asks for")
        if drawn > wanted and self.stream:
            raise FieldError("best_of", "which answer is best shows at its end: it cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise FieldError("max_tokens", "0 tokens are an answer with 'echo': true only")
        return drawn

    def sampling(self, choice: int, max_tokens: int, top_logprobs: int | None) -> Sampling:
        """Return how the `choice`-th sequence is drawn; which one is best shows by its log-probabilities."""
        return super().sampling(choice, max_tokens, 0 if top_logprobs is None and self.best_of else top_logprobs)


UNSUPPORTED = {
    "audio": "this server answers in text only",
    "web_search_options": "this server searches nothing; give it a tool that does",
    "functions": "give 'tools' instead, of which each has {'type': 'function', 'function': {...}}",
    "function_call": "give 'tool_choice' instead",
}


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, strict=True)] | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Annotated[bool, Field(strict=True)] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=64, description="values for the chat template, such as enable_thinking"
    )
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="a value for the chat template; most have no place for it"
    )
    continue_final_message: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="whether the answer goes on with the last message, which is the assistant's"
    )
    verbosity: str | None = unused()
    prediction: dict[str, Any] | None = unused()
    modalities: list[Literal["text"]] | None = unused()
    audio: Any = Field(default=None, description="not supported")
    web_search_options: Any = Field(default=None, description="not supported")
    functions: Any = Field(default=None, description="not supported")
    function_call: Any = Field(default=None, description="not supported")

    @field_validator(*UNSUPPORTED, mode="before")
    @classmethod
    def _not_supported(cls, value: Any, info: ValidationInfo) -> None:
        if value is not None:
            raise ValueError(UNSUPPORTED[info.field_name or ""])

    def conversation(self) -> Conversation:
        """Return what the chat template lays out.

        Raises:
            FieldError: a call is asked for that no tool can answer, or a message is to go on that cannot.
        """
        if self.continue_final_message and (self.messages[-1].role != "assistant" or self.messages[-1].tool_calls):
            raise FieldError("continue_final_message", "the last message must be a text of the assistant")
        if self.continue_final_message and self.constraint() is not None:
            raise FieldError("continue_final_message", "a form holds whole answers, not the rest of one")
        options = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            options.setdefault("reasoning_effort", self.reasoning_effort)
        found = chosen(self.tool_choice, self.tools, self.messages, self.parallel_tool_calls)
        return replace(found, options=options, continued=self.continue_final_message)


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
