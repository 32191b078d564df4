"""A text continued outside the server: the same tokens for a prompt and the same text for an answer as within it."""

from __future__ import annotations

from collections.abc import Iterable

from lumoe.errors import UserError
from lumoe.moe.serve.detokenizer import TextStream
from lumoe.moe.serve.errors import ApiError
from lumoe.moe.serve.prompts import Prompts


def prompt_ids(prompts: Prompts, text: str) -> list[int]:
    """Return the token ids of `text`, with what the tokenizer puts before one.

    Raises:
        UserError: there are none or too many, one that the model does not know, or bytes that are no text.
    """
    try:
        text.encode()
        return prompts.encode(text)
    except UnicodeEncodeError:
        raise UserError("the prompt holds bytes that are no character") from None
    except ApiError as error:
        raise UserError(error.message) from None


def continuation(prompts: Prompts, ids: list[int], drawn: Iterable[int]) -> tuple[int, str]:
    """Take tokens after the prompt `ids` up to one that ends an answer; return how many were drawn, and their text."""
    text, pieces, count = TextStream(prompts.tokens, ids[-4:], ()), [], 0
    for token in drawn:
        count += 1
        if token in prompts.end_tokens:
            break
        pieces.append(text.push(token))
    return count, "".join([*pieces, text.finish()])
