"""Where an answer ends, what its tokens are called and where they begin: on both kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import Running, serving
from spoken import KINDS, TURN, chain, scripted
from transformers import PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

PROMPT = "there was"
# The last two begin characters that nothing goes on with.
BROKEN = [*"é文".encode(), 0xC5, 0xE7]


@dataclass
class Said:
    """A server whose answer to PROMPT is " a house", broken bytes, a special token, " near", and then the end."""

    running: Running
    tokenizer: PreTrainedTokenizerFast
    answer: list[int]

    def ask(self, **more: Any) -> dict[str, Any]:
        body = {"model": self.running.name, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, **more}
        with self.running.client() as client:
            response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice

    def stream(self, **more: Any) -> list[dict[str, Any]]:
        body = {
            "model": self.running.name,
            "prompt": PROMPT,
            "max_tokens": 40,
            "temperature": 0,
            "stream": True,
            **more,
        }
        with self.running.client() as client:
            lines = client.post("/v1/completions", json=body).text.split("\n\n")
        return [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]


def byte_ids(tokenizer: PreTrainedTokenizerFast, values: list[int]) -> list[int]:
    vocabulary, letters = tokenizer.get_vocab(), bytes_to_unicode()
    names = [f"<0x{value:02X}>" if "<0x41>" in vocabulary else letters[value] for value in values]
    return [vocabulary[name] for name in names]


@pytest.fixture(scope="module", params=KINDS)
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    tokenizer = KINDS[request.param]()

    def word(text: str) -> int:
        return int(tokenizer.encode(f"a {text}", add_special_tokens=False)[-1])

    turn = tokenizer.convert_tokens_to_ids(TURN)
    answer = [word("a"), word("house"), *byte_ids(tokenizer, BROKEN), turn, word("near"), tokenizer.eos_token_id]
    assert len({*answer}) == len(answer)
    follows = chain(tokenizer.encode(PROMPT)[-1], *answer)
    folder = scripted(tmp_path_factory.mktemp("said") / "model", tokenizer, follows)
    with serving(Setup(folder, dtype="float32"), Limits(slots=4, context=96)) as running:
        yield Said(running, tokenizer, answer)


TEXT = " a houseé文\ufffd\ufffd near"


def test_the_whole_answer_is_what_is_streamed(said: Said) -> None:
    whole = said.ask()
    assert (whole["text"], whole["finish_reason"]) == (TEXT, "stop")
    pieces = said.stream()
    assert "".join(piece["text"] for piece in pieces) == TEXT
    assert pieces[-1]["finish_reason"] == "stop"
    assert len(pieces) > 4


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"stop": [TURN]}, " a houseé文\ufffd\ufffd"),
        ({"stop": [f"{TURN} n"]}, " a houseé文\ufffd\ufffd"),
        ({"stop": "é"}, " a house"),
        ({"stop": ["文\ufffd"]}, " a houseé"),
        ({"stop": ["nowhere"]}, TEXT),
    ],
    ids=lambda value: str(value),
)
def test_stop_strings_with_special_tokens_and_broken_characters(said: Said, more: dict[str, Any], text: str) -> None:
    whole = said.ask(**more)
    assert whole["finish_reason"] == "stop"
    assert whole["text"] == text
    assert "".join(piece["text"] for piece in said.stream(**more)) == whole["text"]


def test_stop_tokens_by_id(said: Said) -> None:
    house, turn = said.answer[1], said.tokenizer.convert_tokens_to_ids(TURN)
    assert said.ask(stop_token_ids=[house])["text"] == " a"
    found = said.ask(stop_token_ids=[turn, 10**6])
    assert (found["text"], found["finish_reason"]) == (" a houseé文\ufffd\ufffd", "stop")


def test_tokens_are_named_as_they_are_and_begin_within_the_text(said: Said) -> None:
    whole = said.ask(logprobs=20)
    named = whole["logprobs"]
    first = [" a", " house", "bytes:\\xc3", "bytes:\\xa9", "bytes:\\xe6", "bytes:\\x96", "bytes:\\x87"]
    assert named["tokens"] == [*first, "bytes:\\xc5", "bytes:\\xe7", TURN, " near"]
    at = len(" a house")
    assert named["text_offset"] == [0, 2, at, at, at + 1, at + 1, at + 1, at + 2, at + 3, at + 3, at + 4]
    assert all(len(top) == 20 for top in named["top_logprobs"]), "two tokens share no key"
    for token, value, top in zip(named["tokens"], named["token_logprobs"], named["top_logprobs"], strict=True):
        assert top[token] == value == max(top.values())
    streamed = [piece["logprobs"] for piece in said.stream(logprobs=20)]
    for key in ("tokens", "text_offset", "token_logprobs"):
        assert [one for part in streamed for one in part[key]] == named[key], key


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_each_file_may_name_an_end(said: Said, tmp_path: Path, file: str) -> None:
    tokenizer = said.tokenizer
    folder = scripted(tmp_path / "model", tokenizer, chain(tokenizer.encode(PROMPT)[-1], *said.answer))
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, "eos_token_id": [tokenizer.eos_token_id, said.answer[1]]}))
    with serving(Setup(folder, dtype="float32"), Limits(slots=2, context=64)) as running:
        found = Said(running, tokenizer, said.answer).ask()
    assert (found["text"], found["finish_reason"]) == (" a", "stop")


def test_penalties_filters_and_bias_of_a_request(said: Said) -> None:
    house, near = said.answer[1], said.answer[-2]
    assert said.ask(max_tokens=2, logit_bias={str(near): 100}, stop=None)["text"] == " near near"
    assert said.ask(max_tokens=1, logit_bias={str(said.answer[0]): -100})["text"] != " a"
    for more in ({"top_k": 1}, {"min_p": 1.0}):
        assert said.ask(max_tokens=2, temperature=2.0, seed=3, **more)["text"] == " a house"
    free = {said.ask(max_tokens=2, temperature=2.0, seed=seed)["text"] for seed in range(8)}
    assert len(free) > 2
    once = said.ask(max_tokens=2, logit_bias={str(house): 20}, frequency_penalty=2, presence_penalty=2)
    assert once["text"] == " house house", "20 of bias outweigh 4 of penalties"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 2.5),
        ("presence_penalty", -3),
        ("repetition_penalty", 0),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1000000": 1}),
        ("top_k", -2),
        ("min_p", 1.5),
        ("stop_token_ids", [-1]),
    ],
)
def test_values_out_of_range_are_refused(said: Said, field: str, value: object) -> None:
    body = {"model": said.running.name, "prompt": PROMPT, field: value}
    with said.running.client() as client:
        response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_an_end_that_is_ignored_ends_nothing(said: Said) -> None:
    free = said.ask(ignore_eos=True, max_tokens=30)
    assert free["finish_reason"] == "length"
    assert free["text"].startswith(TEXT)
    house = said.answer[1]
    assert said.ask(ignore_eos=True, stop_token_ids=[house])["text"] == " a"
    assert said.ask(ignore_eos=True, stop="é")["text"] == " a house"


def test_nothing_ends_an_answer_before_its_least_tokens(said: Said) -> None:
    length = len(said.answer)
    assert said.ask(min_tokens=length - 1)["text"] == TEXT
    longer = said.ask(min_tokens=length, max_tokens=length, ignore_eos=False)
    assert longer["finish_reason"] == "length", "the end token came too early to be drawn"
    assert longer["text"].startswith(TEXT)
    house = said.answer[1]
    assert said.ask(min_tokens=1, stop_token_ids=[house, 10**6])["text"] == " a"
    assert not said.ask(min_tokens=2, max_tokens=2, stop_token_ids=[house, 10**6])["text"].startswith(" a house")
    assert said.ask(min_tokens=1, stop=" house")["text"] == " a"
    for more in ({"min_tokens": 2}, {"min_tokens": 4}):
        assert said.ask(stop=[" house"], **more)["text"] == TEXT, "written before the least tokens were"
    assert said.ask(stop=["文"], min_tokens=2)["text"] == " a houseé"


def test_what_ended_an_answer_can_be_part_of_it(said: Said) -> None:
    show = {"include_stop_str_in_output": True}
    for stop, text in (("house", " a house"), ("é", " a houseé"), (f"{TURN} n", " a houseé文\ufffd\ufffd n")):
        assert said.ask(stop=stop, **show)["text"] == text
        pieces = said.stream(stop=stop, logprobs=0, **show)
        assert "".join(piece["text"] for piece in pieces) == text
    assert said.ask(stop_token_ids=[said.answer[1]], **show)["text"] == " a house"
    assert said.ask(**show)["text"] == TEXT, "the model's own end is a special token"


def test_special_tokens_are_text_where_they_are_asked_for(said: Said) -> None:
    text = f" a houseé文\ufffd\ufffd{TURN} near"
    assert said.ask(skip_special_tokens=False)["text"] == text
    assert "".join(piece["text"] for piece in said.stream(skip_special_tokens=False)) == text
    assert said.ask(skip_special_tokens=True)["text"] == TEXT
    shown = said.ask(skip_special_tokens=False, include_stop_str_in_output=True)["text"]
    assert shown == text + said.tokenizer.eos_token
    assert said.ask(skip_special_tokens=False, stop=TURN)["text"] == " a houseé文\ufffd\ufffd"
