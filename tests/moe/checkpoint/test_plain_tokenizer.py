"""Token ids read without transformers are those that transformers gives, or transformers is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lumoe.errors import UserError
from lumoe.moe.checkpoint.plain_tokenizer import plain_tokenizer
from lumoe.moe.checkpoint.tokenize import tokenize

SHIPPED = Path(__file__).parents[3] / "data/models/mini-mixtral"
TEXTS = [
    "",
    "Return the sum of an array.\n\n    >>> np.sum([0.5, 1.5])\n    2.0\n",
    "naïve café ﬁ 数 🜁 \x00 <|endoftext|> tail  \t\r\n",
    "word " * 5000,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(SHIPPED / name, tmp_path)
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("text", TEXTS, ids=["empty", "docstring", "odd", "longer than the context"])
def test_ids_are_those_of_transformers(text: str) -> None:
    plain = plain_tokenizer(SHIPPED)
    assert plain is not None
    known = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    assert plain.encode(text) == known.encode(text, add_special_tokens=False, verbose=False)
    assert (plain.bos_token_id, plain.eos_token_id) == (known.bos_token_id, known.eos_token_id)
    assert tokenize(SHIPPED, text) == (plain.encode(text), known.bos_token_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"eos_token": "<|not in the vocabulary|>"},
        {"added_tokens_decoder": {"4096": {"content": "<|one more|>", "special": True}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_only_transformers_knows_is_left_to_it(folder: Path, changes: dict[str, object]) -> None:
    assert plain_tokenizer(folder) is not None
    edit(folder, **changes)
    assert plain_tokenizer(folder) is None


def test_code_in_the_folder_is_refused(folder: Path) -> None:
    edit(folder, auto_map={"AutoTokenizer": ["code.py", None]})
    with pytest.raises(UserError, match="never run"):
        plain_tokenizer(folder)


def test_a_changed_file_is_read_again(folder: Path) -> None:
    first = plain_tokenizer(folder)
    edit(folder, bos_token=None)
    second = plain_tokenizer(folder)
    assert first is not None
    assert second is not None
    assert (first.bos_token_id, second.bos_token_id) == (0, None)


def test_scoring_a_text_does_not_import_transformers() -> None:
    code = (
        "import sys; from lumoe.moe.checkpoint.tokenize import tokenize; "
        f"tokenize({str(SHIPPED)!r}, 'a text'); sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
