"""Which tokens end an answer: three files of a model folder have a say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lumoe.errors import UserError
from lumoe.files import read_json


def end_tokens(folder: str | Path, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of generation_config.json and config.json.

    Raises:
        UserError: one of the files names something else than token ids.
    """
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found += named if isinstance(named, list) else [named]
        if wrong := [token for token in found if token is not None and type(token) is not int]:
            raise UserError(f"{path}: 'eos_token_id' names {wrong[0]!r}, which is no token id")
    return frozenset(token for token in found if token is not None)
