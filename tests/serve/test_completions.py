"""Prompts shown before their answers, scored, and the best of several answers: on both kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from running import Running, serving
from spoken import KINDS, TURN, random_model
from transformers import PreTrainedTokenizerFast

from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.engine.engine import Engine
from lumoe.moe.serve.prompt_scores import POSITIONS_AT_ONCE
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

PROMPT = "there was a house near the sea."
LONG = f"{PROMPT} " * 20
# Rounding of float32 over two layers; log-probabilities here lie around -6.
TOLERANCE = 2e-5


@dataclass
class Made:
    running: Running
    tokenizer: PreTrainedTokenizerFast
    engine: Engine

    def ask(self, prompt: object = PROMPT, **more: Any) -> dict[str, Any]:
        status, found = self.post(prompt, **more)
        assert status == 200, found
        return found

    def post(self, prompt: object, **more: Any) -> tuple[int, dict[str, Any]]:
        body = {"model": self.running.name, "prompt": prompt, "max_tokens": 6, "temperature": 0, **more}
        with self.running.client() as client:
            answer = client.post("/v1/completions", json=body)
        return answer.status_code, answer.json()

    def stream(self, **more: Any) -> list[dict[str, Any]]:
        body = {"model": self.running.name, "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "stream": True, **more}
        with self.running.client() as client:
            lines = client.post("/v1/completions", json=body).text.split("\n\n")
        return [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]

    def expected(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities of all tokens but the first, by a quiet engine."""
        return torch.log_softmax(self.engine.logits(ids).float(), -1)[:-1]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = random_model(
        tmp_path_factory.mktemp("echo") / "model", KINDS[request.param](), max_position_embeddings=512
    )
    with serving(Setup(folder, dtype="float32"), Limits(slots=4, context=400, prefill_tokens=96)) as running:
        yield Made(running, load_tokenizer(folder), Engine.load(folder, dtype=torch.float32))


def test_an_echoed_prompt_is_the_text_and_then_the_answer(made: Made) -> None:
    plain = made.ask()["choices"][0]["text"]
    for prompt in (PROMPT, f" {PROMPT}", f"there {TURN} was", "é文 house"):
        alone = made.ask(prompt)["choices"][0]["text"]
        assert made.ask(prompt, echo=True)["choices"][0]["text"] == prompt + alone
    ids = made.tokenizer.encode(PROMPT)
    assert made.ask(ids, echo=True)["choices"][0]["text"] == PROMPT + plain
    several = made.ask([PROMPT, "a house"], echo=True, n=2)["choices"]
    assert [one["text"].startswith(("there was a", "a house")[one["index"] // 2]) for one in several] == [True] * 4
    assert "".join(one["text"] for one in made.stream(echo=True)) == PROMPT + plain


@pytest.mark.parametrize("prompt", [PROMPT, LONG], ids=["short", "in several pieces"])
def test_prompt_tokens_have_the_engines_log_probabilities(made: Made, prompt: str) -> None:
    ids = made.tokenizer.encode(prompt)
    assert prompt is PROMPT or len(ids) > POSITIONS_AT_ONCE + 96
    made.ask(prompt)  # whose keys and values are known from here on, and would leave nothing to score
    found = made.ask(prompt, echo=True, logprobs=3)
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    named = found["choices"][0]["logprobs"]
    answered = found["usage"]["completion_tokens"]
    assert len(named["tokens"]) == len(ids) + answered
    assert named["token_logprobs"][0] is None
    assert named["top_logprobs"][0] is None
    expected = made.expected(ids)
    for place, (token, row) in enumerate(zip(ids[1:], expected, strict=True), 1):
        assert named["token_logprobs"][place] == pytest.approx(float(row[token]), abs=TOLERANCE)
        values = sorted(named["top_logprobs"][place].values(), reverse=True)
        assert values == pytest.approx(row.topk(3).values.tolist(), abs=TOLERANCE)
    plain = made.ask(prompt, logprobs=3)["choices"][0]["logprobs"]
    assert named["tokens"][len(ids) :] == plain["tokens"]
    assert named["token_logprobs"][len(ids) :] == pytest.approx(plain["token_logprobs"], abs=TOLERANCE)


@pytest.mark.parametrize("prompt", [PROMPT, f"é文 {TURN} house", f" {PROMPT}"])
def test_tokens_begin_where_they_stand_in_the_echoed_text(made: Made, prompt: str) -> None:
    choice = made.ask(prompt, echo=True, logprobs=0)["choices"][0]
    text, named = choice["text"], choice["logprobs"]
    offsets = named["text_offset"]
    assert offsets[0] == 0
    assert all(begin <= end for begin, end in pairwise(offsets))
    assert offsets[-1] <= len(text)
    begun = len(made.tokenizer.encode(prompt))
    assert offsets[begun:] == [
        len(prompt) + at for at in made.ask(prompt, logprobs=0)["choices"][0]["logprobs"]["text_offset"]
    ]
    ends = [*offsets[1:begun], len(prompt)]
    for token, begin, end in zip(named["tokens"][:begun], offsets[:begun], ends, strict=True):
        if begin and not token.startswith("bytes:"):
            # Of two spaces between a special token and a word one is the tokenizer's.
            assert text[begin:end].strip() == token.strip()
    streamed = [piece["logprobs"] for piece in made.stream(prompt=prompt, echo=True, logprobs=0)]
    for key in ("tokens", "text_offset", "token_logprobs"):
        assert [one for part in streamed for one in part[key]] == named[key], key


def test_no_tokens_after_an_echo_score_a_prompt_alone(made: Made) -> None:
    ids = made.tokenizer.encode(LONG)
    found = made.ask(LONG, echo=True, max_tokens=0, logprobs=1)
    choice = found["choices"][0]
    assert (choice["text"], choice["finish_reason"], found["usage"]["completion_tokens"]) == (LONG, "length", 0)
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    expected = made.expected(ids)
    total = float(expected.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).sum())
    assert sum(choice["logprobs"]["token_logprobs"][1:]) == pytest.approx(total, abs=TOLERANCE * len(ids))
    assert made.ask("sea", echo=True, max_tokens=0)["choices"][0]["text"] == "sea"


def test_scored_prompts_change_nothing_for_others(made: Made) -> None:
    prompts = [f"{number} {PROMPT}" for number in range(6)]
    alone = [made.ask(prompt, max_tokens=20)["choices"][0]["text"] for prompt in prompts]

    def ask(number: int) -> str:
        scored = {"echo": True, "logprobs": 1} if number % 2 else {}
        text: str = made.ask(prompts[number % 6], max_tokens=20, **scored)["choices"][0]["text"]
        return text.removeprefix(prompts[number % 6]) if scored else text

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, [*range(6), 7, 6, 9, 8, 11, 10]))
    assert found == [*alone, alone[1], alone[0], alone[3], alone[2], alone[5], alone[4]]


def test_choices_of_one_prompt_share_its_scores(made: Made) -> None:
    choices = made.ask(PROMPT, echo=True, logprobs=1, n=3, temperature=1, seed=4)["choices"]
    size = len(made.tokenizer.encode(PROMPT))
    scores = [choice["logprobs"]["token_logprobs"][:size] for choice in choices]
    assert scores == [scores[0]] * 3
    assert len({choice["text"] for choice in choices}) == 3


def test_damaged_logits_of_a_prompt_are_its_own(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made.running.server.engine
    alone, step, bad = made.ask("a house")["choices"][0]["text"], engine.step, made.tokenizer.encode("near the sea")

    def damaged(tokens: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = step(tokens, *arguments, **options).clone()
        for row, ids in enumerate(tokens.tolist()):
            if ids == bad:
                logits[row, 0, 5] = torch.nan
        return logits

    monkeypatch.setattr(engine, "step", damaged)
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(made.ask, "a house", echo=True, logprobs=0)
        status, found = made.post("near the sea", echo=True, logprobs=0)
    assert status == 500
    assert "not finite" in found["error"]["message"]
    assert good.result()["choices"][0]["text"] == "a house" + alone


def test_the_best_of_several_is_the_likeliest_per_token(made: Made) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 9, "max_tokens": 12, "ignore_eos": True}
    drawn = made.ask(n=8, logprobs=0, **settings)["choices"]

    def worth(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(values))

    ordered = [choice["text"] for choice in sorted(drawn, key=worth, reverse=True)]
    found = made.ask(n=3, best_of=8, **settings)
    assert [choice["text"] for choice in found["choices"]] == ordered[:3]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["choices"][0]["logprobs"] is None
    assert found["usage"]["completion_tokens"] == 8 * 12
    two = made.ask(["a", PROMPT], best_of=8, echo=True, logprobs=1, **settings)["choices"]
    assert two[1]["text"] == PROMPT + ordered[0]
    assert len(two) == 2


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"best_of": 2, "n": 3}, "best_of", "fewer than the 3"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"best_of": 0}, "best_of", ""),
        ({"max_tokens": 0}, "max_tokens", "'echo': true"),
        ({"suffix": "end"}, "suffix", "fills no gap"),
        ({"echo": "yes"}, "echo", ""),
        ({"min_tokens": 7}, "min_tokens", "more than the 6"),
        ({"min_tokens": -1}, "min_tokens", ""),
        ({"prompt": "word " * 400, "echo": True}, "prompt", ""),
    ],
)
def test_what_contradicts_itself_is_refused(made: Made, more: dict[str, Any], param: str, says: str) -> None:
    status, found = made.post(**{"prompt": PROMPT, **more})
    assert (status, found["error"]["param"]) == (400, param)
    assert says in found["error"]["message"]


def test_an_empty_suffix_and_best_of_one_change_nothing(made: Made) -> None:
    plain = made.ask()["choices"]
    assert made.ask(suffix="", best_of=1, echo=False)["choices"] == plain
    assert made.ask(suffix=None, best_of=None, echo=None)["choices"] == plain
    assert [one["text"] for one in made.stream(best_of=1)][-1] is not None


def test_special_tokens_before_a_text_are_put_there_or_not(made: Made) -> None:
    for special in (True, False):
        expected = len(made.tokenizer.encode(PROMPT, add_special_tokens=special))
        assert made.ask(add_special_tokens=special)["usage"]["prompt_tokens"] == expected
