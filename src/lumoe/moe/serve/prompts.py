"""From the text of a request to token ids that fit the context."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lumoe.moe.serve.detokenizer import TokenBytes
from lumoe.moe.serve.errors import ApiError
from lumoe.moe.serve.schemas import Message


class Prompts:
    """The model's tokenizer, and the limits that prompts must keep.

    Attributes:
        end_tokens: tokens that end an answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, context: int, end_tokens: frozenset[int]
    ) -> None:
        self._tokenizer, self._vocabulary, self._context = tokenizer, vocabulary, context
        self.end_tokens = end_tokens
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        # Limits that a tokenizer's file may set would cut prompts silently.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.tokens = TokenBytes(self.backend)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be turned into prompts."""
        return bool(self._tokenizer.chat_template)

    def encode(self, prompt: str | list[int]) -> list[int]:
        """Return token ids of a prompt of `POST /v1/completions`."""
        if isinstance(prompt, str):
            return self._checked(list(self.backend.encode(prompt, add_special_tokens=True).ids), "prompt")
        return self._checked(prompt, "prompt")

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Return token ids of a conversation, laid out by the model's chat template."""
        if not self.has_chat_template:
            raise ApiError(400, "this model has no chat template; use /v1/completions", "messages", "no_chat_template")
        try:
            text = self._tokenizer.apply_chat_template(
                [message.flat() for message in messages], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(
                400, f"the chat template refused the messages: {error}", "messages", "invalid_value"
            ) from None
        return self._checked(list(self.backend.encode(text, add_special_tokens=False).ids), "messages")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one token stands for, which need not be whole characters."""
        return self.tokens.of(token)

    def token_text(self, token: int) -> str:
        """Return one token as it is, a leading space included; bytes are written ``bytes:\\xf0``, as OpenAI does."""
        raw = self.tokens.of(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = None
        if text is None or self.tokens.is_byte(token):
            return "bytes:" + "".join(f"\\x{value:02x}" for value in raw)
        return text

    def check_known(self, ids: Iterable[int], param: str) -> None:
        """Refuse tokens that the model has no row for.

        Raises:
            ApiError: there is one in the field `param`.
        """
        if wrong := [token for token in ids if token >= self._vocabulary]:
            raise ApiError(400, f"token id {wrong[0]} is outside 0..{self._vocabulary - 1}", param, "invalid_value")

    def limit(self, prompt: list[int], asked: int | None) -> int:
        """Return how many tokens may be drawn after `prompt`.

        Raises:
            ApiError: prompt and `asked` tokens do not fit the context.
        """
        room = self._context - len(prompt)
        if asked is not None and asked > room:
            raise self._too_long(f"{len(prompt)} tokens and max_tokens {asked}", "max_tokens")
        return room if asked is None else asked

    def _checked(self, ids: list[int], param: str) -> list[int]:
        if not ids:
            raise ApiError(400, "the prompt is empty; give at least one token", param, "empty_prompt")
        # A tokenizer may have tokens that the model has no row for.
        self.check_known(ids, param)
        if len(ids) >= self._context:
            raise self._too_long(f"{len(ids)} tokens", param)
        return ids

    def _too_long(self, what: str, param: str) -> ApiError:
        text = f"the context holds {self._context} tokens, the request needs more: its prompt has {what}"
        return ApiError(400, text, param, "context_length_exceeded")
