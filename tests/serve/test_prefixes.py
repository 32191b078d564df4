"""Keys and values are shared by sequences that begin alike, counted in the budget, and given up before answers are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from running import Running, make_model, serving, settled

from lumoe.moe.serve import governor
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

LONG = "the quick brown fox jumps over the lazy dog. a stitch in time saves nine. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("prefixes") / "model", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def sharing(folder: Path) -> Iterator[Running]:
    with serving(Setup(folder, dtype="float32"), Limits(slots=4, context=512)) as found:
        yield found


def ask(running: Running, prompt: str, **options: object) -> dict[str, object]:
    with running.client() as client:
        body = {"model": running.name, "prompt": prompt, "max_tokens": 8, "temperature": 0, **options}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]


def cached(answer: dict[str, object]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]  # type: ignore[index, no-any-return]


def metric(running: Running, name: str) -> float:
    with running.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_second_turn_is_not_prefilled_again(sharing: Running) -> None:
    first = ask(sharing, LONG)
    text = first["choices"][0]["text"]  # type: ignore[index]
    tokens = first["usage"]["prompt_tokens"]  # type: ignore[index]
    assert cached(first) == 0
    fed, hits = (
        metric(sharing, 'lumoe_tokens_total{kind="prompt"}'),
        metric(sharing, 'lumoe_prompt_tokens_total{found="hit"}'),
    )
    second = ask(sharing, LONG + text + " and then")
    assert cached(second) == tokens // 16 * 16 or cached(second) == (tokens + 7) // 16 * 16
    length = second["usage"]["prompt_tokens"]  # type: ignore[index]
    assert metric(sharing, 'lumoe_tokens_total{kind="prompt"}') - fed == length - cached(second)
    assert metric(sharing, 'lumoe_prompt_tokens_total{found="hit"}') - hits == cached(second)


def test_answers_are_those_of_a_server_that_shares_nothing(folder: Path, sharing: Running) -> None:
    prompts = [LONG[:cut] + tail for cut in (200, 150, 200) for tail in ("", " fox", " dog and more")]
    alone = Limits(slots=1, context=512, share_prefixes=False)
    with serving(Setup(folder, dtype="float32"), alone) as quiet:
        expected = [ask(quiet, prompt)["choices"] for prompt in prompts]
        assert metric(quiet, 'lumoe_prompt_tokens_total{found="hit"}') == 0
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda prompt: ask(sharing, prompt)["choices"], prompts * 3))
    assert found == expected * 3


def test_choices_of_one_prompt_are_prefilled_once(sharing: Running) -> None:
    fed = metric(sharing, 'lumoe_tokens_total{kind="prompt"}')
    answer = ask(sharing, "nine saves time: " + LONG, n=4, temperature=1, seed=1)
    length = answer["usage"]["prompt_tokens"]  # type: ignore[index]
    shared = (length - 1) // 16 * 16  # type: ignore[operator]
    assert metric(sharing, 'lumoe_tokens_total{kind="prompt"}') - fed == length + 3 * (length - shared)  # type: ignore[operator]


def test_other_precisions_do_not_share(folder: Path) -> None:
    with serving(Setup(folder, budget="60%", dtype="bfloat16"), Limits(slots=2, context=512)) as found:
        ask(found, LONG)
        assert cached(ask(found, LONG)) > 0
        assert cached(ask(found, LONG, preference="quality")) == 0


def test_the_budget_holds_keys_and_values_too(folder: Path) -> None:
    with serving(Setup(folder, budget="100%"), Limits(slots=4, context=512)) as found, found.client() as client:
        engine, pool = found.server.engine, found.server.governor.pool
        for prompt in (LONG, LONG[10:], LONG[20:], LONG[30:]):
            ask(found, prompt)
        for share in ("100%", "80%", "60%"):
            assert client.put("/v1/budget", json={"budget": share}).status_code == 200
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(lambda number: ask(found, f"{number} {LONG}", max_tokens=200), range(8)))
            state = settled(client)
            assert state["bytes_fast"] + pool.nbytes <= state["budget_bytes"]
            assert engine.budget_bytes + pool.cache.limit * pool.cache.block_bytes <= state["budget_bytes"]
            assert pool.cache.limit * pool.cache.block_bytes > 0


def test_sequences_that_need_more_take_it_from_experts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Setup(folder, budget="70%"), Limits(slots=4, context=512)) as found, found.client() as client:
        before = settled(client)
        with ThreadPoolExecutor(4) as threads:
            never_ends = {str(token): -100 for token in found.server.prompts.end_tokens}
            long = {"max_tokens": 300, "logit_bias": never_ends}
            answers = list(threads.map(lambda number: ask(found, f"{number} {LONG}", **long), range(4)))
            # All four were there at once: more than the one context that a plan leaves room for.
        after = settled(client)
        assert found.server.governor.kv_blocks > 512 // 16
        assert after["budget_bytes"] == before["budget_bytes"]
        assert after["resident_experts"] < before["resident_experts"]
        assert all(answer["usage"]["completion_tokens"] == 300 for answer in answers)  # type: ignore[index]
        # When they are gone, and others need little, experts get it back.
        monkeypatch.setattr(governor, "GIVE_BACK_S", 0.05)
        for number in range(100):
            ask(found, str(number))
            if found.server.governor.kv_blocks == 512 // 16:
                break
        assert settled(client)["resident_experts"] == before["resident_experts"]


def test_where_memory_is_short_sequences_wait_and_answer_as_they_would(folder: Path) -> None:
    limits = Limits(slots=4, context=512)
    prompts = [f"{number} {LONG}" for number in range(4)]

    def answers(running: Running, at_once: int) -> list[object]:
        with ThreadPoolExecutor(at_once) as threads:
            return list(
                threads.map(
                    lambda prompt: ask(running, prompt, max_tokens=250, logit_bias=never_ends)["choices"], prompts
                )
            )

    with serving(Setup(folder, dtype="float32", budget="100%"), limits) as roomy:
        ends = roomy.server.prompts.end_tokens
        never_ends = {str(token): -100 for token in ends}
        expected = answers(roomy, 1)
        least = roomy.server.governor.minimum_bytes
    with serving(Setup(folder, dtype="float32", budget=str(least)), limits) as tight:
        assert answers(tight, 4) == expected
        assert metric(tight, "lumoe_paused_sequences_total") > 0
        assert tight.server.governor.pool.nbytes + tight.server.engine.bytes_fast <= least


def test_a_lower_budget_pauses_what_no_longer_fits(folder: Path) -> None:
    with serving(Setup(folder, dtype="float32", budget="150%"), Limits(slots=4, context=512)) as found:
        ruler, scheduler = found.server.governor, found.server.active
        never_ends = {str(token): -100 for token in found.server.prompts.end_tokens}
        with ThreadPoolExecutor(5) as threads, found.client() as client:
            asked = [
                threads.submit(ask, found, f"{number} {LONG}", max_tokens=300, logit_bias=never_ends)
                for number in range(4)
            ]
            while ruler.pool.busy_blocks < 60:
                torch.zeros(1)
            assert client.put("/v1/budget", json={"budget": ruler.minimum_bytes}).status_code == 200
            held = scheduler.call(lambda: ruler.pool.nbytes + found.server.engine.bytes_fast).result(10)
            assert held <= ruler.budget_bytes == ruler.minimum_bytes
            assert [answer.result()["usage"]["completion_tokens"] for answer in asked] == [300] * 4  # type: ignore[index]
