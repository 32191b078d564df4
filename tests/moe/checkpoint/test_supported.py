"""What `lumoe models` says of families is what the tests hold them to and what the server reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_families import MODELS

from lumoe.moe.architectures.read import known_families, read_shape
from lumoe.moe.checkpoint import supported
from lumoe.moe.checkpoint.gguf_metadata import ALSO, FAMILIES
from lumoe.moe.serve.tools import BARE, format_of
from lumoe.resources import data_path

ROWS = supported.families()
LLAMA_CPP = json.loads(Path(__file__).with_name("llama_cpp.json").read_text())["models"]


def test_every_kind_of_model_has_one_row_and_a_shape() -> None:
    named = [kind for row in ROWS for kind in row.model_type]
    assert sorted(named) == sorted(known_families())
    assert len(set(named)) == len(named)
    for row in ROWS:
        assert data_path("shapes", f"{row.shape}.yaml").is_file()
        assert known_families()[read_shape(row.shape).family] is known_families()[row.model_type[0]]


def test_logits_are_held_to_what_it_says() -> None:
    """References: models of transformers in `tiny_families`, logits of newer versions, and llama.cpp's answers."""
    newer = {folder.name for folder in (Path(__file__).parents[1] / "references").iterdir() if folder.is_dir()}
    tested = {
        "transformers": {kind for kind, _ in MODELS.values()} | newer,
        "llama.cpp": {MODELS[name][0] if name in MODELS else name for name in LLAMA_CPP},
    }
    for program, kinds in tested.items():
        assert {row.models for row in ROWS if program in row.held_to} == {
            row.models for row in ROWS if kinds & {*row.model_type}
        }
    assert all("transformers" in row.held_to for row in ROWS)


def test_names_in_gguf_are_those_that_are_read() -> None:
    assert {name: row.model_type for row in ROWS for name in row.gguf}.keys() == FAMILIES.keys()
    for row in ROWS:
        assert all(FAMILIES[name][0] in row.model_type or name in ALSO.values() for name in row.gguf)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type[0])
def test_the_server_reads_calls_that_begin_so(row: supported.Family) -> None:
    if row.calls is not None:
        form = format_of(row.calls, {})
        assert form is not BARE
        assert row.calls in form.marks


def test_families_with_marks_of_their_own_are_read() -> None:
    """Their chat templates' words, by hand."""
    marks = {"gpt_oss": "<|channel|>", "minimax_m2": "<minimax:tool_call>", "hunyuan_v1_moe": "<tool_calls>"}
    assert {row.model_type[0]: row.calls for row in ROWS if row.model_type[0] in marks} == marks


def test_words_follow_the_records() -> None:
    """Read off a model's card, by hand."""
    by_kind = {kind: row for row in ROWS for kind in row.model_type}
    assert by_kind["mixtral"].router == "softmax, 2 of 8"
    assert by_kind["deepseek_v3"].router.split("; ")[:3] == [
        "sigmoid, 8 of 256", "a correction has a say in the choice", "from 4 of 8 groups",
    ]  # fmt: skip
    assert "a window of 128 tokens in 12 of 24 layers" in by_kind["gpt_oss"].attention
    assert by_kind["qwen3_next"].attention.startswith("36 of 48 layers Gated DeltaNet; grouped-query; ")
    assert [kind for kind, row in by_kind.items() if row.gpu] == ["mixtral"]
