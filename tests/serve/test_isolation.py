"""One request's fault is nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Running, make_model, serving

from lumoe.errors import UserError
from lumoe.moe.checkpoint.end_tokens import end_tokens
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.serve import scheduler
from lumoe.moe.serve.answers import Answer
from lumoe.moe.serve.generation import Generation
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Running]:
    with serving(Setup(model, dtype="float32"), Limits(slots=4, context=128)) as found:
        yield found


def complete(running: Running, prompt: str, **more: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": running.name, "prompt": prompt, "max_tokens": 24, "temperature": 0} | more
    with running.client() as client:
        answer = client.post("/v1/completions", json=body)
    return answer.status_code, answer.json()


def together(running: Running, prompts: list[str]) -> list[tuple[int, dict[str, Any]]]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: complete(running, prompt), prompts))


@pytest.mark.parametrize("part", ["sample", "accept"])
def test_a_fault_ends_its_own_sequence_alone(running: Running, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    alone = complete(running, "the quick")[1]["choices"][0]["text"]
    bad: set[int] = set()
    if part == "accept":
        accept = Generation.accept

        def faulty(self: Generation, token: Any) -> Any:
            if self.sampling.max_tokens == 24 and self.made == 5 and self.prompt[-1] in bad:
                raise RuntimeError("no such text")
            return accept(self, token)

        monkeypatch.setattr(Generation, "accept", faulty)
    else:
        sample = scheduler.sample

        def refusing(logits: torch.Tensor, samplers: Any) -> Any:
            wanted = [generation for generation in running.server.active._running if generation.prompt[-1] in bad]
            if any(sampler is generation.sampler for sampler in samplers for generation in wanted):
                raise RuntimeError("no such token")
            return sample(logits, samplers)

        monkeypatch.setattr(scheduler, "sample", refusing)
    bad.add(running.server.prompts.encode("a stitch")[-1])
    (good_status, good), (bad_status, _) = together(running, ["the quick", "a stitch"])
    assert (good_status, bad_status) == (200, 500)
    assert good["choices"][0]["text"] == alone
    bad.clear()
    assert complete(running, "a stitch")[0] == 200


def test_a_token_that_the_model_has_no_row_for_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(folder)
    with serving(Setup(folder), Limits(slots=2, context=64)) as running:
        status, body = complete(running, "<|im_start|>hello")
        assert (status, body["error"]["param"], body["error"]["code"]) == (400, "prompt", "invalid_value")
        assert "token id 320 is outside 0..319" in body["error"]["message"]
        assert complete(running, "hello")[0] == 200


@pytest.mark.parametrize("field", ["prompt", "model", "stop"])
def test_half_of_a_surrogate_pair_is_refused(running: Running, field: str) -> None:
    body = {"model": running.name, "prompt": "a", "max_tokens": 2} | {field: "a\ud83d"}
    with running.client() as client:
        answer = client.post(
            "/v1/completions", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]


def test_end_tokens_are_those_of_all_files(tmp_path: Path, model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert end_tokens(tmp_path, tokenizer) == {tokenizer.eos_token_id}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 11}))
    assert end_tokens(tmp_path, tokenizer) == {tokenizer.eos_token_id, 7, 9, 11}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(UserError, match=r"config\.json: 'eos_token_id' names 'x'"):
        end_tokens(tmp_path, tokenizer)


def test_a_fault_while_a_prompt_is_fed_leaves_those_that_are_answered(running: Running) -> None:
    engine = running.server.engine
    alone = complete(running, "the quick", max_tokens=100)[1]["choices"][0]["text"]
    step, bad = engine.step, running.server.prompts.encode("a stitch in")

    def broken(tokens: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if tokens.shape[1] == len(bad) and tokens[0].tolist() == bad:
            raise OSError("the disk is gone")
        return step(tokens, *arguments, **options)

    engine.step = broken  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(1) as pool, running.client() as client:
            body = {"model": running.name, "prompt": "the quick", "max_tokens": 100, "temperature": 0, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                first = next(lines)
                status, answer = pool.submit(complete, running, "a stitch in").result()
                assert "[DONE]" not in first
                rest = [json.loads(line[6:]) for line in (first, *lines) if line.startswith("data: {")]
    finally:
        engine.step = step  # type: ignore[method-assign]
    assert status == 500
    assert "the disk is gone" in answer["error"]["message"]
    assert "".join(event["choices"][0]["text"] for event in rest) == alone


@pytest.mark.parametrize("streamed", [True, False])
def test_a_fault_while_an_answer_is_put_into_words_is_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    alone = complete(running, "the quick")[1]["choices"][0]["text"]
    name = "chunk" if streamed else "whole"
    works = getattr(Answer, name)

    def faulty(self: Answer, *arguments: Any) -> Any:
        if self.prompt_tokens == len(running.server.prompts.encode("a stitch in time")):
            raise RuntimeError("no such word")
        return works(self, *arguments)

    monkeypatch.setattr(Answer, name, faulty)

    def ask(prompt: str) -> tuple[int, str]:
        body = {"model": running.name, "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": streamed}
        with running.client() as client:
            answer = client.post("/v1/completions", json=body)
        return answer.status_code, answer.text

    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.map(ask, ["the quick", "a stitch in time"])
    assert good[0] == 200
    if streamed:
        events = [json.loads(line[6:]) for line in bad[1].split("\n\n") if line.startswith("data: {")]
        assert (bad[0], events[-1]["error"]["type"]) == (200, "server_error")
        assert "no such word" in events[-1]["error"]["message"]
        pieces = [json.loads(line[6:]) for line in good[1].split("\n\n") if line.startswith("data: {")]
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == alone
    else:
        assert bad[0] == 500
        assert json.loads(good[1])["choices"][0]["text"] == alone


def test_logits_that_are_no_numbers_fail_the_sequence_that_has_them(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = complete(running, "the quick")[1]["choices"][0]["text"]
    sample, bad = scheduler.sample, running.server.prompts.encode("a stitch")[-1]

    def damaged(logits: torch.Tensor, samplers: Any) -> Any:
        logits = logits.clone()
        for generation in running.server.active._running:
            for row, sampler in enumerate(samplers):
                if sampler is generation.sampler and generation.prompt[-1] == bad and generation.made == 3:
                    logits[row, 7] = torch.nan
        return sample(logits, samplers)

    monkeypatch.setattr(scheduler, "sample", damaged)
    (good_status, good), (status, answer) = together(running, ["the quick", "a stitch"])
    assert (good_status, status) == (200, 500)
    assert "not finite" in answer["error"]["message"]
    assert good["choices"][0]["text"] == alone
