"""How models write calls of functions: a format for each family, from the text that a model wrote to the calls in it.

Sources are the families' chat templates and the descriptions of their formats: Hermes and Qwen (`<tool_call>` around
JSON), Qwen3-Coder and GLM-4.5 (the same tags around tags), Mistral (`[TOOL_CALLS]`), Granite (`<|tool_call|>`),
DeepSeek-V3 and V3.1, MiniMax-M2 (`<invoke>` between its own tags), Hunyuan (`<tool_calls>` around a list), gpt-oss
(messages in channels), and Llama 3 (JSON and nothing else).
"""

from __future__ import annotations

import json
import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lumoe.moe.serve.constraints import moved

Parameters = Mapping[str, Mapping[str, Any]]
_LETTERS = string.ascii_letters + string.digits
_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` is an object as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Read:
    """Calls that a text begins with, and how many of its characters they are."""

    used: int
    calls: tuple[Call, ...]


class Format(ABC):
    """How a family of models writes calls.

    Attributes:
        marks: what opens calls.
        dropped: what stands around calls and says nothing.
        inner: what stands within them.
        spaces: characters that separate calls from each other and from text.
        first: whether calls are read at the beginning of an answer only.
        key: the field of a call's arguments; None where calls are not written as JSON.
        listed: whether a mark opens a list of calls.
        around: what an answer may stand between.
        lead: what an answer may begin with and says nothing.
        channels: whether an answer is a sequence of messages, each with a header that names its channel.
    """

    marks: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    spaces = string.whitespace
    first = False
    key: str | None = None
    listed = False
    around: tuple[str, str] | None = None
    lead = ""
    channels = False

    @property
    def names(self) -> frozenset[str]:
        """All that the format is made of; tokens of these names are part of the text that is read."""
        return frozenset((*self.marks, *self.dropped, *self.inner))

    @abstractmethod
    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read the calls that `mark` opens and `body` goes on with; None while the body may still become them.

        What was read of a body is read of every longer one, too.

        Args:
            parameters: the schema of each function's arguments.
            done: whether the body ends here.

        Raises:
            ValueError: these are no calls.
        """

    @abstractmethod
    def opening(self, name: str | None) -> str:
        """Return how a call begins: of the function `name` up to its arguments, or of any up to its name."""

    def before_json(self, parameters: Parameters, only: str | None) -> str:
        """Return what a call begins with before the JSON that `schema` describes for the same functions."""
        opening = self.opening(None)
        mark = "" if self.first else self.marks[0]
        behind = opening.find(mark) + len(mark)
        # A space may be part of the token that the JSON begins with.
        return opening[: min(place for end in "{[" if (place := opening.find(end, behind)) >= 0)].rstrip(" ")

    @property
    def beginnings(self) -> frozenset[str]:
        """Words that a call begins with and no other answer does."""
        words = self.dropped if self.first else (*self.dropped, *self.marks)
        return frozenset(word for word in words if self.first or self.opening(None).startswith(word))

    def schema(self, parameters: Parameters, only: str | None) -> dict[str, Any] | None:
        """Return the JSON schema of what follows a mark where a call has to come; None where that is no JSON.

        Args:
            parameters: the schema of each function's arguments.
            only: the function that has to be called; None is any.
        """
        if self.key is None:
            return None
        wanted = [(name, schema) for name, schema in parameters.items() if only in (None, name)]
        calls = []
        for index, (name, schema) in enumerate(wanted):
            place = "#/items" * self.listed or "#"
            place += f"/anyOf/{index}" * (len(wanted) > 1) + f"/properties/{self.key}"
            call = {
                "type": "object",
                "properties": {"name": {"const": name}, self.key: moved(dict(schema), place) or {"type": "object"}},
                "required": ["name", self.key],
                "additionalProperties": False,
            }
            calls.append(call)
        call = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return {"type": "array", "items": call, "minItems": 1} if self.listed else call

    def turns(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the turns of a conversation as the template can show them all."""
        return turns

    def tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return tools as the template can show them all."""
        return tools

    def new_id(self) -> str:
        """Return the name of a call in a conversation."""
        return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))

    def id_of(self, given: str) -> str:
        """Return a call's name as the template takes it."""
        return given


def arguments_json(value: Any) -> str:
    """Return the arguments of a call as JSON.

    Raises:
        ValueError: they are no object, nor one written as a string.
    """
    if isinstance(value, str):
        value = loads(value) if value.strip() else {}
    if not isinstance(value, dict):
        raise ValueError("arguments are an object")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # JSON can name half of a pair; such a character can only be sent by its number.
    return text if _is_text(text) else json.dumps(value, allow_nan=False)


def loads(text: str) -> Any:
    """Return a JSON value.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _decode(text: str) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _call(name: Any, arguments: Any) -> Call:
    if not isinstance(name, str) or not name or not _is_text(name):
        raise ValueError("a call names a function")
    try:
        return Call(name, arguments_json(arguments))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def calls_of(value: Any) -> tuple[Call, ...]:
    """Return the call or calls that a JSON value describes.

    Raises:
        ValueError: it describes none.
    """
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("a call is an object")
    return tuple(
        _call(entry.get("name"), entry.get("arguments", entry.get("parameters", {})) or {}) for entry in entries
    )


def _typed(text: str, parameters: Parameters, function: str, name: str) -> Any:
    """Return an argument that was written without quotes: text where the schema has text or nothing."""
    schema = parameters.get(function, {}).get("properties")
    described = schema.get(name) if isinstance(schema, dict) else None
    kinds = _kinds(described)
    if text == "null" and "null" in kinds:
        return None
    if not kinds or "string" in kinds or not text:
        return text
    try:
        return loads(text)
    except ValueError:
        return text


def _kinds(schema: Any) -> set[Any]:
    """Return the types that a schema names, those of its alternatives among them."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    found = {kind for kind in (named if isinstance(named, list) else [named]) if isinstance(kind, str)}
    for key in ("anyOf", "oneOf"):
        parts = schema.get(key)
        for part in parts if isinstance(parts, list) else ():
            found |= _kinds(part)
    return found


def _json_body(body: str, parameters: Parameters) -> tuple[Call, ...]:
    return calls_of(loads(body))


def _function_body(body: str, parameters: Parameters) -> tuple[Call, ...]:
    found = re.fullmatch(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", body, re.DOTALL)
    if not found:
        raise ValueError("a call is <function=NAME>")
    name, inner = found[1].strip(), found[2]
    pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", inner, re.DOTALL)
    return (_call(name, {key: _typed(value, parameters, name, key) for key, value in pairs}),)


def _key_value_body(body: str, parameters: Parameters) -> tuple[Call, ...]:
    name, _, inner = body.partition("<arg_key>")
    if not _NAME.fullmatch(name := name.strip()):
        raise ValueError("a call begins with its name")
    pairs = re.findall(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>", "<arg_key>" + inner, re.DOTALL)
    return (_call(name, {key.strip(): _typed(value, parameters, name, key.strip()) for key, value in pairs}),)


def _tagged_body(body: str, parameters: Parameters) -> tuple[Call, ...]:
    begin = body.lstrip()
    if begin.startswith(("{", "[")):
        return _json_body(body, parameters)
    return (_function_body if begin.startswith("<function=") else _key_value_body)(body, parameters)


def _separated_body(body: str, parameters: Parameters) -> tuple[Call, ...]:
    name, separator, rest = body.partition("<｜tool▁sep｜>")
    if not separator:
        raise ValueError("a call has its name and its arguments")
    if name.strip() == "function":
        name, _, rest = rest.partition("\n")
    rest = rest.strip().removeprefix("```json").removesuffix("```")
    return (_call(name.strip(), rest),)


_ARGUMENT = re.compile(
    r"""\s*<parameter name=["']?([^"'>\n]+)["']?>(.*?)</parameter>(?=\s*(?:<parameter name=|</invoke>))""", re.DOTALL
)
_INVOKED = re.compile(r"""\s*<invoke name=["']?([^"'>\n]+)["']?>""")
_INVOKED_END = re.compile(r"\s*</invoke>")


class Invoked(Format):
    """One pair of marks around calls, each an element with its arguments as elements, as MiniMax-M2 writes them."""

    marks = ("<minimax:tool_call>",)
    inner = ("</minimax:tool_call>",)

    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read all calls up to the closing mark; of an answer that ends before it, those that are whole."""
        closing = self.inner[0]
        if not done and closing not in body:
            return None
        calls, end = list[Call](), 0
        while found := _INVOKED.match(body, end):
            name, values, place = found[1].strip(), dict[str, Any](), found.end()
            while argument := _ARGUMENT.match(body, place):
                key = argument[1].strip()
                values[key], place = _typed(argument[2], parameters, name, key), argument.end()
            closed = _INVOKED_END.match(body, place)
            if closed is None:
                break
            calls.append(_call(name, values))
            end = closed.end()
        rest = body[end:].lstrip()
        if calls and rest.startswith(closing):
            return Read(len(body) - len(rest) + len(closing), tuple(calls))
        # A closing mark within an argument is part of it.
        may_go_on = rest.startswith("<invoke") or any(word.startswith(rest) for word in ("<invoke", closing))
        if not done and may_go_on and (closing not in rest or "<parameter" in rest):
            return None
        if not calls:
            raise ValueError("nothing that is a call")
        return Read(end, tuple(calls))

    def opening(self, name: str | None) -> str:
        """Return the mark and the beginning of the first element."""
        return f'{self.marks[0]}\n<invoke name="' + ("" if name is None else f'{name}">\n')


class Channels(Format):
    """Messages, each with a header that names its channel and, for a call, whom it is sent to: gpt-oss's "harmony"."""

    marks = ("<|channel|>",)
    inner = ("<|start|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
    channels = True
    # What ends an answer. The end of a message does not.
    ends = ("<|call|>", "<|return|>")
    _to = re.compile(r"\bto=([^\s<]+)")

    def header(self, prompt: str) -> str:
        """Return how a message begins that a prompt ends within, without what it says already; or nothing."""
        _, found, last = prompt.rpartition("<|start|>")
        header, message, said = re.sub(r"^\s*\w+", "", last).partition("<|message|>")
        ended = any(mark in said for mark in ("<|end|>", *self.ends))
        return header.lstrip() + message if found and not ended else ""

    def recipient(self, header: str) -> str | None:
        """Return whom a message with this header is sent to; None is the user."""
        found = self._to.search(header)
        return None if found is None or found[1] in ("user", "assistant", "all") else found[1]

    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read the call that a message is: `mark` is its header, `body` what it says."""
        name = self.recipient(mark)
        if not done:
            return None
        if name is None or not body.strip():
            raise ValueError("a call is sent to a function and has arguments")
        return Read(len(body), (_call(name.removeprefix("functions."), body),))

    def opening(self, name: str | None) -> str:
        """Return a header; of a call of any function, what it has before the name."""
        header = "<|channel|>commentary to=functions"
        # The dot may be part of the token that the name begins with.
        return header if name is None else f"{header}.{name} <|constrain|>json<|message|>"

    @property
    def beginnings(self) -> frozenset[str]:
        """Nothing: every message begins with the same words."""
        return frozenset()

    def before_json(self, parameters: Parameters, only: str | None) -> str:
        """Return the whole header: what follows it are arguments."""
        return self.opening(self._only(parameters, only))

    def schema(self, parameters: Parameters, only: str | None) -> dict[str, Any] | None:
        """Return the schema of the arguments if only one function may be called; else the name comes first."""
        name = self._only(parameters, only)
        return None if name is None else {"type": "object", **parameters[name]}

    def turns(self, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the turns with one call each, what came of it behind it, and what was said before it as a thought.

        The template shows no more than one call of a turn, names results by the call before them, and takes either a
        thought or a text besides a call.
        """
        found, place = list[dict[str, Any]](), 0
        while place < len(turns):
            turn = turns[place]
            place += 1
            calls = turn.get("tool_calls")
            if not calls:
                found.append(turn)
                continue
            behind = place
            while behind < len(turns) and turns[behind]["role"] == "tool":
                behind += 1
            results, place = turns[place:behind], behind
            thought = "\n\n".join(text for text in (turn.get("thinking"), turn["content"]) if text)
            for number, call in enumerate(calls):
                first = {**turn, "content": "", **({"thinking": thought} if thought else {})}
                alone = {"role": turn["role"], "content": ""} if number else first
                # A result that names no call of these belongs to the one at its place, or to the last.
                last = number == len(calls) - 1
                mine = [
                    result
                    for index, result in enumerate(results)
                    if (named := self._named(result, calls)) == number
                    or (named is None and (index == number or (last and index > number)))
                ]
                found += [{**alone, "tool_calls": [call]}, *mine]
        return found

    def tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the tools with a description each: the template refuses one without."""
        return [{**tool, "function": {"description": "", **tool["function"]}} for tool in tools]

    @staticmethod
    def _named(result: dict[str, Any], calls: list[dict[str, Any]]) -> int | None:
        wanted = result.get("tool_call_id")
        return next((place for place, call in enumerate(calls) if wanted and call["id"] == wanted), None)

    @staticmethod
    def _only(parameters: Parameters, only: str | None) -> str | None:
        return next(iter(parameters)) if only is None and len(parameters) == 1 else only


class Tagged(Format):
    """Each call between a mark and another one; a model that ends instead of closing the last one is understood."""

    def __init__(
        self,
        mark: str,
        close: str,
        body: Callable[[str, Parameters], tuple[Call, ...]],
        named: str,
        unnamed: str,
        outside: tuple[str, ...] = (),
    ) -> None:
        """Describe a format.

        Args:
            named: how a call of NAME begins, behind the mark.
            unnamed: how a call of any function begins, behind the mark.
            outside: marks around all calls.
        """
        self.marks, self.dropped, self.inner = (mark,), outside, (close,)
        self._close, self._body, self._named, self._unnamed = close, body, named, unnamed
        self.key = "arguments" if '"arguments"' in named else None
        self.listed = named.startswith("[")

    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read one call, up to the mark that closes it; within a string of JSON that is not the end."""
        end = body.find(self._close)
        while end >= 0:
            try:
                return Read(end + len(self._close), self._body(body[:end], parameters))
            except ValueError:
                if not within_string(body[:end]):
                    raise
            end = body.find(self._close, end + 1)
        return Read(len(body), self._body(body, parameters)) if done else None

    def opening(self, name: str | None) -> str:
        """Return the mark and what comes behind it."""
        outside = self.dropped[0] if self.dropped else ""
        return outside + self.marks[0] + (self._unnamed if name is None else self._named.replace("NAME", name))


def within_string(text: str) -> bool:
    """Whether a beginning of JSON ends within a string."""
    return re.sub(r"\\.", "", text, flags=re.DOTALL).count('"') % 2 == 1


class Answering(Tagged):
    """Calls between marks, in an answer that may stand between marks itself."""

    around = ("<answer>", "</answer>")
    # "Assistant: ", which the template asks for where nothing is called.
    lead = "助手："


class Marked(Format):
    """A mark and JSON behind it, or a name and JSON; where the JSON ends the calls do."""

    _head = re.compile(r"\s*([\w.:-]{1,128})(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)", re.ASCII)

    def __init__(
        self, mark: str, dropped: tuple[str, ...] = (), inner: tuple[str, ...] = (), nine: bool = False
    ) -> None:
        """Describe a format.

        Args:
            inner: marks between a name and its arguments, if it is written so.
            nine: whether calls are named by nine letters and digits.
        """
        self.marks, self.dropped, self.inner, self._nine = (mark,), dropped, inner, nine
        self.key, self.listed = (None, False) if inner else ("arguments", True)

    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read one JSON value, or a name and one."""
        begin = len(body) - len(body.lstrip())
        head = None if body[begin : begin + 1] in ("{", "[") else self._head.match(body)
        begin = head.end() if head else begin
        try:
            value, used = _decode(body[begin:]) if head or body[begin : begin + 1] in ("{", "[") else (None, 0)
        except ValueError:
            if done:
                raise
            return None
        if not used:
            if done:
                raise ValueError("nothing that is a call")
            return None
        return Read(begin + used, (_call(head[1], value),) if head else calls_of(value))

    def opening(self, name: str | None) -> str:
        """Return the mark and what comes behind it."""
        if self.inner:
            return self.marks[0] + ("" if name is None else f"{name}{self.inner[0]}")
        return f'{self.marks[0]} [{{"name":' + ("" if name is None else f' "{name}", "arguments":')

    def new_id(self) -> str:
        """Return nine letters and digits, which Mistral's templates insist on."""
        return "".join(secrets.choice(_LETTERS) for _ in range(9)) if self._nine else super().new_id()

    def id_of(self, given: str) -> str:
        """Return a name that another server gave, in nine letters and digits."""
        if not self._nine or (len(given) == 9 and given.isascii() and given.isalnum()):
            return given
        return "".join(letter for letter in given if letter.isascii() and letter.isalnum())[-9:].rjust(9, "0")


class Bare(Format):
    """The answer is JSON and nothing else. Nothing marks it as a call, so it must name one of the tools."""

    marks = ("{", "[")
    dropped = ("<|python_tag|>",)
    spaces = string.whitespace + ";,"
    first = True
    key = "parameters"

    def read(self, mark: str, body: str, parameters: Parameters, done: bool) -> Read | None:
        """Read one JSON value."""
        try:
            value, used = _decode(mark + body)
        except ValueError:
            if done:
                raise
            return None
        calls = calls_of(value)
        if any(call.name not in parameters for call in calls):
            raise ValueError("not one of the tools")
        return Read(used - len(mark), calls)

    def opening(self, name: str | None) -> str:
        """Return the beginning of an object."""
        return '{"name":' + ("" if name is None else f' "{name}", "parameters":')


HERMES = Tagged("<tool_call>", "</tool_call>", _tagged_body, '\n{"name": "NAME", "arguments":', '\n{"name":')
CODER = Tagged("<tool_call>", "</tool_call>", _tagged_body, "\n<function=NAME>\n", "\n<function=")
GLM = Tagged("<tool_call>", "</tool_call>", _tagged_body, "NAME\n", "")
_DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", _separated_body)
_AROUND = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK_V3 = Tagged(*_DEEPSEEK, "function<｜tool▁sep｜>NAME\n```json\n", "function<｜tool▁sep｜>", _AROUND)
DEEPSEEK_V31 = Tagged(*_DEEPSEEK, "NAME<｜tool▁sep｜>", "", _AROUND)
MISTRAL = Marked("[TOOL_CALLS]", nine=True)
MISTRAL_NAMED = Marked("[TOOL_CALLS]", inner=("[ARGS]", "[CALL_ID]"), nine=True)
GRANITE = Marked("<|tool_call|>", dropped=("<|/tool_call|>",))
HUNYUAN = Answering("<tool_calls>", "</tool_calls>", _json_body, '[{"name": "NAME", "arguments":', '[{"name":')
MINIMAX = Invoked()
HARMONY = Channels()
BARE = Bare()

# The first entry whose words are all in the chat template, or else among the tokens, is how the model writes calls.
FORMATS: tuple[tuple[tuple[str, ...], Format], ...] = (
    (("<|channel|>",), HARMONY),
    (("<minimax:tool_call>",), MINIMAX),
    (("<tool_calls>",), HUNYUAN),
    # Its template shows no calls where it is given no tools.
    (("<|extra_0|>", "<|extra_4|>"), HUNYUAN),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<｜tool▁call▁begin｜>", "```json"), DEEPSEEK_V3),
    (("<｜tool▁call▁begin｜>",), DEEPSEEK_V31),
    (("<|tool_call|>",), GRANITE),
    (("<tool_call>", "<function="), CODER),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>",), HERMES),
)


def format_of(template: str, tokens: Mapping[str, int]) -> Format:
    """Return the format that the words of a chat template show, or else those of a vocabulary; JSON if neither does."""
    for words, form in FORMATS:
        if all(word in template for word in words):
            return form
    # Llama's template names no mark, and its vocabulary has none of these.
    return next((form for words, form in FORMATS if all(word in tokens for word in words)), BARE)
