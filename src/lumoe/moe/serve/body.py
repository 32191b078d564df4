"""What the bodies of all requests have in common: characters, a depth, and no field that nobody knows."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_DEPTH = 100
_LONE = re.compile("[\ud800-\udfff]")


def unused() -> Any:
    """Return a field that changes nothing of an answer."""
    return Field(default=None, description="accepted, not used")


def _check_of_characters(value: Any) -> None:
    """Refuse what no model's text has, and what is nested so deeply that programs which walk through it fail."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the body is nested more deeply than {MAX_DEPTH} levels")
        for text in level:
            # JSON can name half of a pair, as a client does that cuts a string within an emoji; no text has it.
            if isinstance(text, str) and not text.isascii() and _LONE.search(text):
                raise ValueError("a text holds half of a surrogate pair, which is no character")
        inner = [part for part in level if isinstance(part, list | dict)]
        level = [one for part in inner for one in (part if isinstance(part, list) else (*part, *part.values()))]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _of_characters(cls, value: Any) -> Any:
        _check_of_characters(value)
        return value
