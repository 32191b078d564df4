"""A text as the ids that a model scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumoe.errors import UserError
from lumoe.moe.checkpoint.plain_tokenizer import plain_tokenizer


def tokenize(model: str | Path, text: str) -> tuple[list[int], int]:
    """Return `text` as token ids without special tokens, and the id that stands before a text.

    Raises:
        UserError: the model folder holds no tokenizer, or one without a beginning- or end-of-sequence token.
    """
    plain = plain_tokenizer(model)
    if plain is not None:
        return plain.encode(text), prefix_token(plain)
    from lumoe.moe.checkpoint.tokenizer import load_tokenizer  # seconds to import

    tokenizer = load_tokenizer(model)
    # A text longer than the model's context is what is wanted here: no warning.
    return tokenizer.encode(text, add_special_tokens=False, verbose=False), prefix_token(tokenizer)


def prefix_token(tokenizer: Any) -> int:
    """Return the id that stands before a text: beginning of sequence, else end of sequence.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError("the tokenizer has neither a beginning- nor an end-of-sequence token")
