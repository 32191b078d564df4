"""Token ids from a folder whose tokenizer is nothing but its tokenizer.json, without importing transformers.

transformers takes longer to import than most commands take to run. Where its tokenizer class adds nothing to the file,
or just what stands before and after a text (Llama's), the tokenizers library behind it is asked directly: the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from lumoe.errors import UserError
from lumoe.files import read_json
from lumoe.moe.architectures.read import refuse_code
from lumoe.moe.checkpoint.manifest import verify_recorded

# Classes and the special tokens that they add where the folder names none.
_CLASSES: dict[str, dict[str, str]] = {
    "PreTrainedTokenizerFast": {},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": {
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
    },
}  # fmt: skip


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer and the ids of its beginning- and end-of-sequence tokens, None for one that it has not."""

    backend: Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, with no token added and none cut off."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)


def check_folder(folder: str | Path) -> None:
    """Look at a model folder before a tokenizer is read from it.

    Raises:
        UserError: it names code, or a file is not the one that the folder's manifest records.
    """
    verify_recorded(Path(folder))
    for name in ("config.json", "tokenizer_config.json"):
        path = Path(folder, name)
        values = read_json(path) if path.is_file() else {}
        if not isinstance(values, dict):
            raise UserError(f"{path}: a mapping is expected")
        refuse_code(path, values)


def plain_tokenizer(folder: str | Path) -> PlainTokenizer | None:
    """Return the tokenizer of a model folder, None where only transformers knows how to build it.

    Raises:
        UserError: see `check_folder`.
    """
    check_folder(folder)
    path = Path(folder, "tokenizer.json")
    settings = Path(folder, "tokenizer_config.json")
    if not (path.is_file() and settings.is_file()):
        return None
    return _read(path, path.stat().st_mtime_ns, settings, settings.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int, settings_path: Path, _settings_changed: int) -> PlainTokenizer | None:
    settings = read_json(settings_path)
    name = str(settings.get("tokenizer_class"))
    name = name if name in _CLASSES else name.removesuffix("Fast")
    # With this setting Llama's class makes another file of it.
    if name not in _CLASSES or settings.get("add_prefix_space") is not None:
        return None
    settings = {**_CLASSES[name], **settings}
    try:
        backend = Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        return None  # transformers then says what is wrong with the file
    named = [_content(settings.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")]
    added = [_content(entry) for entry in (settings.get("added_tokens_decoder") or {}).values()]
    if any(token is not None and backend.token_to_id(token) is None for token in [*named, *added]):
        return None  # a token that transformers would add to the vocabulary
    backend.no_truncation()
    backend.no_padding()
    bos, eos = (None if token is None else backend.token_to_id(token) for token in named[:2])
    if name == "LlamaTokenizer":
        before = [named[0]] if settings.get("add_bos_token", True) else []
        after = [named[1]] if settings.get("add_eos_token", False) else []
        if None in (*before, *after):
            return None
        around = [(token, backend.token_to_id(token)) for token in (*before, *after)]
        backend.post_processor = TemplateProcessing(single=[*before, "$A", *after], special_tokens=around)
    return PlainTokenizer(backend, bos, eos)


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token
