"""Which field of a request is at fault, as the client wrote it, and what it may be instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What a field of several forms takes, where the sentences of its forms would not say it.
ACCEPTED = {
    "prompt": "must be a text, a list of texts, a list of token ids, or a list of such lists; none of them empty",
    "stop": "must be a text, or a list of up to 16 texts, each of 1 to 256 characters",
    "budget": "must be a number of bytes, or text such as 24GB, 22.5GiB or 30%",
}
# A path that is only half known: names of alternatives, unlike those of fields, are no words or are types.
_FIELD = re.compile(r"[a-z]\w*")
_TYPES = {"str", "int", "float", "bool", "constrained", "dict", "list"}
_WRONG_FORM = re.compile(r".*_type|.*_parsing|literal_error|model_attributes_type|union_tag_.*")


class Fault:
    """What is told of the errors of one request.

    Attributes:
        path: fields and indices down to what is at fault; empty is the body.
        kind: pydantic's name of the error.
        message: what is wrong.
    """

    def __init__(self, errors: Sequence[Mapping[str, Any]], body: Any) -> None:
        """Choose among `errors`: a value of several forms has one or more for each form that it could be."""
        first = errors[0]
        whole = _path(first["loc"], body)
        alike = [error for error in errors if _path(error["loc"], body)[:1] == whole[:1]]
        # An error deeper in a value, or of its range, is one of the form that the client meant.
        meant = [error for error in alike if not _WRONG_FORM.fullmatch(error["type"])]
        chosen = meant[0] if meant else max(alike, key=lambda error: len(_path(error["loc"], body)))
        self.path = _path(chosen["loc"], body)
        self.kind: str = chosen["type"]
        self.message = _said(chosen)
        others = dict.fromkeys(_said(error) for error in alike if _path(error["loc"], body) == self.path)
        if meant or len(alike) == 1:
            return
        if len(whole) and str(whole[0]) in ACCEPTED:
            self.path, self.message = whole[:1], ACCEPTED[str(whole[0])]
        elif len(others) > 1:
            lead = "Input should be "
            self.message = lead + ", or ".join(text.removeprefix(lead) for text in others)

    @property
    def field(self) -> str | None:
        """The field of the body that the fault is in."""
        return self.path[0] if self.path and isinstance(self.path[0], str) else None


def _said(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _path(location: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """Return a location without the names of alternatives, which stand in it behind the field that has them."""
    parts = location[1:] if location[:1] == ("body",) else location
    return tuple(_known(parts) if body is None else _walked(parts, body))


def _walked(parts: Sequence[str | int], value: Any) -> Iterator[str | int]:
    for place, part in enumerate(parts):
        known: Any = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
        if part in known:
            yield part
            value = value[part]
        elif isinstance(value, dict) and place == len(parts) - 1 and (place == 0 or _is_field(part)):
            # What is missing cannot be walked to.
            yield part


def _known(parts: Sequence[str | int]) -> Iterator[str | int]:
    return (part for part in parts if isinstance(part, int) or _is_field(part))


def _is_field(part: str | int) -> bool:
    return isinstance(part, str) and _FIELD.fullmatch(part) is not None and part not in _TYPES
