"""Texts to tokens and back, on both kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from running import Running, serving
from spoken import KINDS, TURN, random_model
from transformers import PreTrainedTokenizerFast

from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, PreTrainedTokenizerFast]]:
    tokenizer = KINDS[request.param]()
    tokenizer.chat_template = TEMPLATE
    folder = random_model(tmp_path_factory.mktemp("tokens") / "model", tokenizer)
    with serving(Setup(folder, dtype="float32"), Limits(slots=2, context=64)) as running:
        yield running, tokenizer


def post(running: Running, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    with running.client() as client:
        answer = client.post(path, json=body)
    return answer.status_code, answer.json()


TEXT = f"there was a house é文 {TURN} near"


def test_a_text_is_the_tokenizers_tokens(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    running, tokenizer = made
    for special in (True, False):
        status, found = post(running, "/tokenize", model=running.name, prompt=TEXT, add_special_tokens=special)
        expected = tokenizer.encode(TEXT, add_special_tokens=special)
        assert (status, found) == (200, {"count": len(expected), "max_model_len": 64, "tokens": expected})
    assert post(running, "/tokenize", prompt=TEXT)[1]["tokens"] == tokenizer.encode(TEXT)
    long = post(running, "/tokenize", prompt="house " * 100)[1]
    assert long["count"] > 64, "counting is not answering: what does not fit is counted, too"
    assert post(running, "/tokenize", prompt="")[1]["tokens"] == tokenizer.encode("")


def test_tokens_are_the_text_again(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    running, tokenizer = made
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    status, found = post(running, "/detokenize", tokens=ids)
    assert (status, found) == (200, {"prompt": tokenizer.decode(ids)})
    assert TURN in found["prompt"]
    assert found["prompt"].replace(" ", "") == TEXT.replace(" ", "")
    assert post(running, "/detokenize", tokens=[]) == (200, {"prompt": ""})


def test_a_conversation_is_laid_out_as_it_would_be_answered(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    running, tokenizer = made
    messages = [{"role": "user", "content": "there was"}, {"role": "assistant", "content": "a house"}]
    text = f"{tokenizer.bos_token}there was{TURN}a house{TURN}"
    found = post(running, "/tokenize", messages=messages)[1]["tokens"]
    assert found == tokenizer.encode(text, add_special_tokens=False)
    chat = post(running, "/v1/chat/completions", model=running.name, messages=messages, max_tokens=1)[1]
    assert chat["usage"]["prompt_tokens"] == len(found)
    special = post(running, "/tokenize", messages=messages, add_special_tokens=True)[1]["tokens"]
    assert special == tokenizer.encode(text, add_special_tokens=True)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": []}, None),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a\ud83d"}, None),
        ("/tokenize", {"messages": [3]}, "messages"),
        ("/tokenize", {"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ("/tokenize", {"prompt": "a", "file": "/etc/passwd"}, "file"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**40]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
def test_what_is_neither_is_refused(
    made: tuple[Running, PreTrainedTokenizerFast], path: str, body: dict[str, Any], param: str | None
) -> None:
    with made[0].client() as client:
        headers = {"content-type": "application/json"}
        answer = client.post(path, content=json.dumps(body).encode(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_ids_that_nothing_has_are_no_text(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    assert post(made[0], "/detokenize", tokens=[2**31 - 1]) == (200, {"prompt": ""})


def test_another_model_is_not_here(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [3]})):
        assert post(made[0], path, model="gpt-5", **body)[0] == 404


def test_embeddings_are_not_made(made: tuple[Running, PreTrainedTokenizerFast]) -> None:
    status, found = post(made[0], "/v1/embeddings", model=made[0].name, input="a")
    assert (status, found["error"]["code"]) == (400, "not_supported")
    assert "generates text only" in found["error"]["message"]
