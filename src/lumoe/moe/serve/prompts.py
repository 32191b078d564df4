"""From the text of a request to token ids that fit the context."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lumoe.moe.checkpoint.chat_template import RESERVED, ChatTokenizer
from lumoe.moe.serve.constraints import Constraint, Freedom, Grammars, constraint_for_schema
from lumoe.moe.serve.conversation import Conversation
from lumoe.moe.serve.detokenizer import TokenBytes
from lumoe.moe.serve.errors import ApiError
from lumoe.moe.serve.reading import THINKING, Manner
from lumoe.moe.serve.tools import HARMONY, Format, format_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as tokens.

    Attributes:
        begun: what the answer begins with already: a call that is asked for.
        manner: how the answer is to be read.
        must_call: whether the answer has to be a call.
        call: what that call is held to; None where it is not written as JSON.
        freedom: what may come before or instead of an answer of some form.
    """

    ids: list[int]
    begun: str
    manner: Manner
    must_call: bool = False
    call: Constraint | None = None
    freedom: Freedom = field(default_factory=Freedom)


class Prompts:
    """The model's tokenizer, and the limits that prompts must keep.

    Attributes:
        end_tokens: tokens that end an answer.
        grammars: what answers are held to, compiled for this vocabulary.
    """

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int, context: int, end_tokens: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary, self._context = tokenizer, vocabulary, context
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self.end_tokens = end_tokens = _ends(self.backend, end_tokens)
        # Limits that a tokenizer's file may set would cut prompts silently.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.tokens = TokenBytes(self.backend)
        self.grammars = Grammars(lambda: self.tokens.spellings(vocabulary, end_tokens))

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be turned into prompts."""
        return bool(self._tokenizer.chat_template)

    def encode(self, prompt: str | list[int], special: bool = True) -> list[int]:
        """Return token ids of a prompt of `POST /v1/completions`; `special` puts what belongs before a text."""
        return self._checked(self.ids(prompt, special) if isinstance(prompt, str) else prompt, "prompt")

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Return token ids of a text, however many; `special` puts what belongs before one."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self.backend.decode(ids, skip_special_tokens=False))

    @cached_property
    def form(self) -> Format:
        """How this model writes calls, as its chat template and vocabulary show."""
        return format_of(self._template, self.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def tags(self) -> tuple[str, str] | None:
        """Between what this model thinks, as template or vocabulary show; None if it does not."""
        known = self.backend.get_vocab(with_added_tokens=True)
        return next((tags for tags in THINKING if tags[1] in self._template or tags[1] in known), None)

    def encode_chat(self, conversation: Conversation) -> ChatPrompt:
        """Lay a conversation out by the model's chat template.

        Raises:
            ApiError: there is no template, it refuses the turns or shows no tools, or the tokens do not fit.
        """
        prompt = self.laid_out(conversation)
        self._checked(prompt.ids, "messages")
        return prompt

    def laid_out(self, conversation: Conversation, special: bool = False) -> ChatPrompt:
        """Lay a conversation out, however many tokens it has.

        Args:
            special: whether the tokenizer puts before the text what it puts before one, as templates do themselves.

        Raises:
            ApiError: there is no template, or it refuses the turns or shows no tools.
        """
        if not self.has_chat_template:
            raise ApiError(400, "this model has no chat template; use /v1/completions", "messages", "no_chat_template")
        text = self._rendered(conversation, self.form.tools([tool.flat() for tool in conversation.tools]) or None)
        if conversation.tools and text == self._rendered(conversation, None):
            text = "this model's chat template has no place for tools: the model would not see them"
            raise ApiError(400, text, "tools", "unsupported_parameter")
        thinking = self.tags is not None and text.rstrip().endswith(self.tags[0])
        begun, call = "", None
        if conversation.must_call:
            schema = self.form.schema(conversation.parameters(), conversation.only)
            # Parameters that are not strict may have keywords that nothing here can hold a call to.
            lenient = not all(tool.function.strict for tool in conversation.tools)
            call = None if schema is None else constraint_for_schema(schema, "tools", lenient)
            begun = (
                self.form.opening(conversation.only)
                if schema is None
                else self.form.before_json(conversation.parameters(), conversation.only)
            )
            if thinking and self.tags is not None:
                begun = f"{self.tags[1]}\n\n{begun}"
        ids = self.ids(text + begun, special)
        form = self.form if conversation.tools else None
        header = HARMONY.header(text) if self.form.channels else None
        manner = Manner(form, conversation.parameters(), self.tags, thinking, self.form.around, header)
        return ChatPrompt(ids, begun, manner, conversation.must_call, call, self._freedom(manner))

    def _freedom(self, manner: Manner) -> Freedom:
        ids = self.backend.token_to_id
        if manner.header is not None:
            header, message = ids("<|channel|>"), ids("<|message|>")
            if header is None or message is None or "<|message|>" in manner.header:
                return Freedom()
            return Freedom(thinking=True, final=(header, *self.ids("final", special=False), message))
        thought = (ids(manner.tags[0]), ids(manner.tags[1])) if manner.tags else (None, None)
        begin, end = thought
        marks = {ids(word) for word in manner.form.beginnings} if manner.form else set()
        return Freedom(
            None if begin is None or end is None else (begin, end), manner.thinking, frozenset(marks - {None})
        )

    def shown_by(self, manner: Manner) -> TokenBytes:
        """Return the tokens, those as text that a reader of `manner` must see."""
        names = (manner.form.names if manner.form else frozenset[str]()) | {
            *(manner.tags or ()),
            *(manner.around or ()),
        }
        names |= HARMONY.names if manner.header is not None else frozenset()
        return self.tokens.showing(names)

    @property
    def _template(self) -> str:
        template = self._tokenizer.chat_template or ""
        return "\n".join(template.values()) if isinstance(template, dict) else str(template)

    def _rendered(self, conversation: Conversation, tools: list[dict[str, Any]] | None) -> str:
        turns = conversation.turns()
        for turn in turns:
            if turn["role"] == "developer" and "developer" not in self._template:
                turn["role"] = "system"
            for call in turn.get("tool_calls", ()):
                call["id"] = self.form.id_of(call["id"]) if call["id"] else self.form.new_id()
            if "tool_call_id" in turn:
                turn["tool_call_id"] = self.form.id_of(turn["tool_call_id"])
        turns = self.form.turns(turns)
        render: Any = self._tokenizer.apply_chat_template
        if taken := {*conversation.options} & {*RESERVED, *self._tokenizer.special_tokens_map}:
            text = f"'{min(taken)}' is not the template's own"
            raise ApiError(400, text, "chat_template_kwargs", "invalid_value")
        options = {
            **conversation.options,
            "tools": tools,
            "add_generation_prompt": not conversation.continued,
            "continue_final_message": conversation.continued,
        }
        # A template is a program: given values that it did not expect, it fails as programs do.
        try:
            return str(render(turns, **options))
        except Exception as error:
            failure = f"the chat template refused the messages: {str(error) or type(error).__name__}"
        functions = [call["function"] for turn in turns for call in turn.get("tool_calls", ())]
        if any(isinstance(function["arguments"], dict) for function in functions):
            # Most templates write arguments out; DeepSeek's want them written.
            for function in functions:
                if isinstance(function["arguments"], dict):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
            try:
                return str(render(turns, **options))
            except Exception:
                log.debug("the chat template refused the messages with arguments as text, too", exc_info=True)
        raise ApiError(400, failure, "messages", "invalid_value")

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


def _ends(backend: Tokenizer, named: frozenset[int]) -> frozenset[int]:
    """Return the tokens that end an answer: those that a model's files name, and what the marks of channels say."""
    known = {name: token for name in HARMONY.names if (token := backend.token_to_id(name)) is not None}
    if len(known) < len(HARMONY.names):
        return named
    return named - {known["<|end|>"]} | {known[name] for name in HARMONY.ends}
