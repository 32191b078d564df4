"""A model's tokenizer as a server needs it: its backend, its special tokens, and its chat template.

transformers has all of this, and takes 100 MB of memory and seconds for it. Where it would add nothing to the files of
a folder they are read here, and templates are rendered here as it renders them; tests hold the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lumoe.files import read_json
from lumoe.moe.checkpoint.plain_tokenizer import plain_tokenizer

Turn = dict[str, Any]
Template = str | Mapping[str, str] | None
# Names that transformers gives to special tokens, and templates know.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names that are no template's own: what a conversation and its laying out are made of.
RESERVED = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize",
})  # fmt: skip
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTokenizer:
    """A tokenizer with its chat template.

    Attributes:
        backend_tokenizer: text to ids and back.
        special_tokens_map: special tokens by the names that templates know.
        chat_template: one template, several by name, or None.
    """

    def __init__(
        self, backend: Tokenizer, eos_token_id: int | None, special_tokens: Mapping[str, Any], chat_template: Template
    ) -> None:
        self.backend_tokenizer, self.eos_token_id = backend, eos_token_id
        self.special_tokens_map, self.chat_template = dict(special_tokens), chat_template

    def apply_chat_template(
        self,
        messages: Sequence[Turn],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **options: Any,
    ) -> str:
        """Lay messages out as text.

        Args:
            tools: as JSON schemas.
            continue_final_message: end within the last message, for an answer that goes on with it.
            options: further names that the template sees.

        Raises:
            ValueError: there is no template for this, or the last message cannot be gone on with.
            jinja2.TemplateError: the template refuses the messages; as a program, it may raise anything.
        """
        template = _compiled(self._chosen(with_tools=tools is not None))
        turns = [deepcopy(turn) for turn in messages]
        if continue_final_message:
            turns[-1]["content"] = f"{turns[-1]['content']}{_MARK}"
        text = template.render(
            messages=turns, tools=tools, documents=None, add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens_map, **options},
        )  # fmt: skip
        if not continue_final_message:
            return text
        at = text.rfind(_MARK.strip())
        if at < 0 or str(messages[-1]["content"]).strip() not in text:
            raise ValueError("the template does not show the last message as it is: the answer cannot go on with it")
        # A template that cuts spaces off has cut off the mark's, too.
        return text[:at] if text[at:].startswith(_MARK) else text[:at].rstrip()

    def _chosen(self, with_tools: bool) -> str:
        found = self.chat_template
        if isinstance(found, Mapping):
            found = found.get("tool_use" if with_tools and "tool_use" in found else "default")
        if found is None:
            raise ValueError("this model has no chat template")
        return found


def chat_tokenizer(folder: str | Path) -> ChatTokenizer:
    """Read the tokenizer of a model folder, which must have a fast form; code in the folder is never run.

    Raises:
        UserError: see `load_tokenizer`.
    """
    plain, path = plain_tokenizer(folder), Path(folder)
    settings = read_json(path / "tokenizer_config.json") if plain is not None else {}
    # Without these, transformers reads further files.
    if plain is not None and "added_tokens_decoder" in settings:
        special: dict[str, Any] = {name: _content(settings[name]) for name in _SPECIAL if settings.get(name)}
        if more := settings.get("additional_special_tokens"):
            special["additional_special_tokens"] = [_content(token) for token in more]
        return ChatTokenizer(plain.backend, plain.eos_token_id, special, _template(path, settings))
    from lumoe.moe.checkpoint.tokenizer import load_tokenizer  # seconds to import

    known = load_tokenizer(folder)
    return ChatTokenizer(known.backend_tokenizer, known.eos_token_id, known.special_tokens_map, known.chat_template)


def _template(folder: Path, settings: Mapping[str, Any]) -> Template:
    found: dict[str, str] = {}
    for path in (folder / "additional_chat_templates").glob("*.jinja"):
        found[path.stem] = path.read_text(encoding="utf-8")
    file, named = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        named = file.read_text(encoding="utf-8")
    elif isinstance(named, list):
        found |= {entry["name"]: entry["template"] for entry in named}
        named = None
    if not found:
        return named
    return found if named is None else {**found, "default": str(named)}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training: here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> str:
        return str(caller())


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
                sort_keys: bool = False) -> str:  # fmt: skip
        # Jinja's own filter writes for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)
