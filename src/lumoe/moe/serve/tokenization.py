"""`POST /tokenize` and `POST /detokenize`, in vLLM's shape: what a text or a conversation is to the model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from lumoe.moe.serve.body import Body
from lumoe.moe.serve.schemas import ChatRequest, Switch

# Ids beyond it are of no tokenizer, and more than its library counts in.
AnyToken = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class TokenizeRequest(Body):
    """`POST /tokenize`: a text, or a conversation as `POST /v1/chat/completions` takes it."""

    model: str | None = Field(default=None, max_length=256)
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = Field(default=None, description="of a conversation")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="of a conversation")
    continue_final_message: Switch = Field(default=False, description="of a conversation")
    add_special_tokens: Switch = Field(
        default=None,
        description="whether the tokenizer puts before the text what it puts before one; by default it does so to a "
        "prompt, and a chat template has written it already",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self

    def chat(self) -> ChatRequest:
        """Return the conversation.

        Raises:
            ValidationError: it is none.
        """
        fields = ("messages", "tools", "chat_template_kwargs", "continue_final_message")
        given = {name: value for name in fields if (value := getattr(self, name)) is not None}
        return ChatRequest.model_validate({"model": self.model or "", **given})


class TokenizeResponse(BaseModel):
    """Token ids, and how many fit the context."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = Field(default=None, max_length=256)
    tokens: list[AnyToken]


class DetokenizeResponse(BaseModel):
    """The text of tokens, special ones included."""

    prompt: str
