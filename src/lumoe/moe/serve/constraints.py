"""Answers that are held to a form: which tokens may come next under a JSON schema, an expression or a grammar.

The work is llguidance's. It is loaded when a form is first asked for.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch

Kind = Literal["schema", "regex", "choice", "grammar"]
MAX_BYTES = 256 << 10
KEPT = 32
# What llguidance may take: states of 1 to 2 KiB each, items at 20 and fuel at 14 to 50 a microsecond.
LIMITS = {
    "max_items_in_row": 3_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# A remainder is a state of the lexer.
MOST_MULTIPLE = 10_000
# Between the parts of JSON. Without an end to it, models write white space for ever.
SPACE = r"( |\n{1,2}[ \t]{0,20})"
# Every token whose bytes go on may come, not only those that the tokenizer would have cut the text into.
_HEAD = '%llguidance {"no_forcing": true}\n'
_INNER = ("properties", "patternProperties", "$defs", "definitions", "allOf", "anyOf", "oneOf", "prefixItems", "items",
          "additionalProperties")  # fmt: skip
# Seconds to look for the place of a fault.
_SEARCH_S = 1.0


class ConstraintError(Exception):
    """A form that no answer can be held to, or not this one."""


@dataclass(frozen=True)
class Constraint:
    """What an answer must be.

    Attributes:
        text: the schema as JSON, the expression, the choices as a list in JSON, or the grammar.
        field: where the request has it.
        lenient: whether what is not supported of a schema is left out.
    """

    kind: Kind
    text: str
    field: str = field(default="", compare=False)
    lenient: bool = False


def constraint_for_schema(schema: dict[str, Any] | bool, field: str = "", lenient: bool = False) -> Constraint:
    """Return what holds an answer to a JSON schema.

    Args:
        field: where the request has it.
        lenient: whether keywords that are not supported are left out; else they are refused when it is compiled.
    """
    return Constraint("schema", json.dumps(schema, ensure_ascii=False), field, lenient)


@dataclass(frozen=True)
class Freedom:
    """What may come before the form of an answer, or instead of it.

    Attributes:
        thought: tokens that begin and end a thought, which may come first; None: no thought may.
        thinking: whether the answer begins within one.
        calls: tokens that begin a call of a tool. Behind one the answer is free.
        final: where an answer is messages with headers: the token that every header begins with, what the header of
            the message follows with that has the form, and the token that every header ends with. Until then it thinks.
    """

    thought: tuple[int, int] | None = None
    thinking: bool = False
    calls: frozenset[int] = frozenset()
    final: tuple[int, ...] = ()


class Grammar:
    """A form that was compiled for one vocabulary; any number of sequences may follow it."""

    def __init__(self, matcher: Any, known: torch.Tensor) -> None:
        """Take a matcher that has not begun; `known`, bool `[vocabulary]`: which tokens a form may have at all."""
        self._matcher, self._known = matcher, known

    def follow(self, ends: frozenset[int] = frozenset(), freedom: Freedom | None = None) -> Follower:
        """Return what holds one sequence, which tokens of `ends` end."""
        return Follower(self._matcher.deep_copy(), self._known, ends, freedom or Freedom())


@dataclass(frozen=True)
class Form:
    """A compiled form, and what an answer may be besides."""

    grammar: Grammar
    freedom: Freedom = Freedom()


class Follower:
    """How far one sequence has followed its grammar: that depends on the tokens drawn and on nothing else.

    Attributes:
        complete: whether the form is complete and nothing can follow.
    """

    def __init__(self, matcher: Any, known: torch.Tensor, ends: frozenset[int], freedom: Freedom) -> None:
        self._matcher, self._known, self._freedom = matcher, known, freedom
        self._vocabulary = vocabulary = len(known)
        self._ends = torch.tensor(sorted(end for end in ends if end < vocabulary), dtype=torch.int64)
        # One more: the token that stands for the end.
        self._bits = np.zeros(-(-(vocabulary + 1) // 32), dtype=np.int32)
        self._thinking, self._thought = freedom.thinking, freedom.thinking
        self._released, self._taken = False, 0
        self._header: list[int] | None = None
        self.complete = False

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next, bool `[vocabulary]`.

        Raises:
            ConstraintError: none may, or the form has become too complex to be followed.
        """
        if self._released or self._thinking:
            free = torch.ones(self._vocabulary, dtype=torch.bool)
            # A thought is no answer yet.
            free[self._ends] = self._released
            return free
        try:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        except Exception as error:
            raise ConstraintError(_said(str(error))) from None
        if self._matcher.is_error():
            raise ConstraintError(_said(self._matcher.get_error()))
        bits = np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary + 1, bitorder="little")
        # A grammar can name tokens by their numbers, special ones too.
        found = torch.from_numpy(bits[:-1].view(np.bool_)) & self._known
        found[self._ends] = bool(bits[-1])
        for token in () if self._taken else self._openers():
            if token < self._vocabulary:
                found[token] = True
        if not bool(found.any()):
            raise ConstraintError("the form of the answer allows no token of the vocabulary here")
        return found

    def confine(self, logits: torch.Tensor) -> None:
        """Make logits `[vocabulary]` of what may not come minus infinity, in place.

        Raises:
            ConstraintError: nothing may come, or the form has become too complex to be followed.
        """
        logits.masked_fill_(~self.allowed().to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Take the next token. What the grammar does not know shows when the next one is asked for."""
        thought = self._freedom.thought
        if self._thinking:
            self._thinking = not self._ends_thought(token)
        elif not self._taken and thought is not None and token == thought[0]:
            self._thinking = self._thought = True
        elif not self._taken and token in self._freedom.calls:
            self._released = True
        elif not self._released and token not in self._ends:
            self._taken += 1
            self._matcher.consume_token(token)
            self.complete = self._matcher.is_stopped() and not self._matcher.is_error()

    def _ends_thought(self, token: int) -> bool:
        if not self._freedom.final:
            return self._freedom.thought is None or token == self._freedom.thought[1]
        begin, *name, end = self._freedom.final
        if token == begin:
            self._header = []
        elif token == end:
            header, self._header = self._header, None
            return header is not None and header[: len(name)] == name
        elif self._header is not None:
            self._header.append(token)
        return False

    def _openers(self) -> Iterator[int]:
        yield from self._freedom.calls
        if self._freedom.thought is not None and not self._thought:
            yield self._freedom.thought[0]


class Grammars:
    """Compiles forms for one vocabulary, on threads of its own; the last ones are kept."""

    def __init__(self, spellings: Callable[[], Sequence[bytes]]) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            spellings: returns the bytes of every token of the vocabulary, none for those that no form may have.
        """
        self._spellings = spellings
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        # What takes long to compile holds up other forms, but no answer without one.
        self.threads = ThreadPoolExecutor(2, thread_name_prefix="lumoe-grammar")

    def compile(self, constraint: Constraint) -> Grammar:
        """Return a form that sequences may follow.

        Raises:
            ConstraintError: it is wrong, not supported, too complex, or allows nothing; the message says where.
        """
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint]
        found = self._compiled(constraint)
        with self._lock:
            self._kept[constraint] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _compiled(self, constraint: Constraint) -> Grammar:
        from llguidance import LLMatcher

        if len(constraint.text.encode()) > MAX_BYTES:
            raise ConstraintError(f"longer than {MAX_BYTES} bytes")
        grammar = LLMatcher.grammar_from_lark(_HEAD + _lark(constraint))
        tokenizer, known = self._tokens()
        matcher = LLMatcher(tokenizer, grammar, limits=_limits(), log_level=0)
        if matcher.is_error():
            raise ConstraintError(_said(matcher.get_error()))
        found = Grammar(matcher, known)
        # The first mask is the dearest one: it is made here, and what allows nothing shows.
        first = Follower(matcher, known, frozenset(), Freedom())
        try:
            first.allowed()
        except ConstraintError:
            # A form that only the empty answer has is followed by the end alone.
            if matcher.is_error() or not matcher.is_accepting():
                raise
        return found

    def _tokens(self) -> tuple[Any, torch.Tensor]:
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                spellings = self._spellings()
                slices = LLTokenizer.json_slices()
                spelled: Any = _Spelled(spellings)
                end = len(spellings)
                tokenizer = LLTokenizer(spelled, n_vocab=end + 1, eos_token=end, slices=slices)
                self._tokenizer = tokenizer, torch.tensor([bool(one) for one in spellings])
            found: tuple[Any, torch.Tensor] = self._tokenizer
            return found


class _Spelled:
    """A vocabulary as llguidance wants it, with one token more that stands for every end."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, spellings: Sequence[bytes]) -> None:
        self.tokens = [*spellings, b"<end>"]
        self.eos_token_id = len(spellings)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        """Return nothing: no form asks how a text is cut."""
        return []


def moved(schema: Any, place: str) -> Any:
    """Return a JSON schema as it is when it stands at `place` of another one: its references begin there."""
    if isinstance(schema, list):
        return [moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + part[1:]
        if key == "$ref" and isinstance(part, str) and part.startswith("#")
        else part
        if key in ("const", "enum", "default", "examples")
        else moved(part, place)
        for key, part in schema.items()
    }


def _limits() -> Any:
    from llguidance import LLParserLimits

    limits: dict[str, Any] = LIMITS
    return LLParserLimits(**limits)


def _lark(constraint: Constraint) -> str:
    """Return a form in llguidance's language.

    Raises:
        ConstraintError: it is wrong, and the message says where.
    """
    from llguidance import LLMatcher, regex_to_lark
    from llguidance.gbnf_to_lark import any_to_lark

    text = constraint.text
    if constraint.kind == "schema":
        schema = json.loads(text)
        options = _options(constraint.lenient)
        _check_schema(schema, options)
        schema = {} if schema is True else schema
        # The library's own options are not the client's: it would ignore what it does not know.
        return "start: %json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)
    if constraint.kind == "regex":
        if fault := LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(text), limits=_limits()):
            raise ConstraintError(_said(fault))
        return f"start: /{regex_to_lark(text, '')}/"
    if constraint.kind == "choice":
        return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    if "%json" in text:
        # What is checked of a schema cannot be checked there.
        raise ConstraintError("%json is not supported within a grammar; give a schema instead")
    try:
        found: str = any_to_lark(text)
    except Exception as error:
        raise ConstraintError(f"neither a Lark nor a GBNF grammar: {error}") from None
    if fault := LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(found), limits=_limits()):
        raise ConstraintError(_said(fault))
    return found


def _options(lenient: bool) -> dict[str, Any]:
    return {"whitespace_pattern": SPACE, "lenient": lenient, "coerce_one_of": lenient}


def _check_schema(schema: Any, options: dict[str, Any]) -> None:
    """Refuse what the library does not take.

    Raises:
        ConstraintError: the message names the keyword and the place.
    """
    _check_multiples(schema)
    if not (fault := _fault(schema, options)):
        return
    place, inner, until = "", schema, time.monotonic() + _SEARCH_S
    whole = f'"whole": {json.dumps(moved(schema, "#/whole"))}, "x-guidance": {json.dumps(options)}'
    # Down to the deepest part that has the same fault by itself.
    while True:
        for name, part in _children(inner):
            here = json.dumps("#/whole" + quote(place + name))
            if time.monotonic() < until and _fault_of(f'{{"$ref": {here}, {whole}}}') == fault:
                place, inner = place + name, part
                break
        else:
            raise ConstraintError(f"at {place or '/'}: {_said(fault)}")


def _fault(schema: Any, options: dict[str, Any]) -> str:
    if schema is True:
        return ""
    if not isinstance(schema, dict):
        return "no answer fits" if schema is False else "schema must be an object or boolean"
    return _fault_of(json.dumps({**schema, "x-guidance": options}))


def _fault_of(schema: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema), limits=_limits())


def _children(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, part) of the schemas that one is made of."""
    if not isinstance(schema, dict):
        return
    for key in _INNER:
        part = schema.get(key)
        if key in ("items", "additionalProperties") and isinstance(part, dict):
            yield f"/{key}", part
        elif isinstance(part, dict):
            yield from ((f"/{key}/{_pointed(name)}", one) for name, one in part.items())
        elif isinstance(part, list):
            yield from ((f"/{key}/{index}", one) for index, one in enumerate(part))


def _check_multiples(schema: Any) -> None:
    """Refuse numbers whose remainders are too many: of several in one schema all may hold for one number.

    Raises:
        ConstraintError: the message names the place.
    """
    common, level = Fraction(1), [("", schema)]
    while level:
        inner = list[tuple[str, Any]]()
        for place, part in level:
            multiple = part.get("multipleOf") if isinstance(part, dict) else None
            if isinstance(multiple, int | float) and 0 < multiple <= MOST_MULTIPLE:
                # As it is written: 0.1 is a tenth.
                one = Fraction(str(multiple)) * 10**9
                common = Fraction(math.lcm(common.numerator, max(int(one), 1)))
            digits = str(common.numerator).rstrip("0")
            if isinstance(multiple, int | float) and (multiple > MOST_MULTIPLE or int(digits) > MOST_MULTIPLE):
                text = (
                    f"at {place or '/'}: multipleOf beyond {MOST_MULTIPLE}, all of a schema together, is not supported"
                )
                raise ConstraintError(text)
            pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
            inner += [(f"{place}/{_pointed(str(key))}", one) for key, one in pairs]
        level = inner


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _said(fault: str) -> str:
    """Return what the library says about a fault, without its own state."""
    said = fault.partition("\n<")[0].strip()[:1000]
    return "no answer fits" if said.startswith("NoExtension") else said or "the form cannot be followed"
