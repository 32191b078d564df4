"""Budget and preference change while requests run: right answers, budgets kept, memory given back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from running import Running, serving, settled

from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Plan
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

PROMPTS = ["the quick brown", "a stitch in time", "Zoë pays", "lazy dog jumps over the fox", "nine"]


@pytest.fixture(scope="module")
def changing(model: Path) -> Iterator[Running]:
    with serving(Setup(model, budget="60%"), Limits(slots=6, context=128, queue=128, share_prefixes=False)) as found:
        yield found


def test_the_budget_is_reported_and_changed(changing: Running) -> None:
    with changing.client() as client:
        whole = client.get("/v1/budget").json()["whole_bytes"]
        for budget, preference in (
            ("100%", "throughput"),
            ("50%", "quality"),
            (whole, "quality"),
            ("60%", "throughput"),
        ):
            response = client.put("/v1/budget", json={"budget": budget, "preference": preference})
            assert response.status_code == 200, response.text
            assert response.json()["bytes_fast"] <= response.json()["budget_bytes"]
            state = settled(client)
            assert state["bytes_fast"] <= state["budget_bytes"]
            assert state["preference"] == preference
            assert (state["quantized_experts"] == 0) == (preference == "quality" or budget == "100%")
        assert client.put("/v1/budget", json={}).json()["budget_bytes"] == round(0.6 * whole)


@pytest.mark.parametrize(
    "body",
    [{"budget": "1%"}, {"budget": 0}, {"budget": "lots"}, {"budget": True}, {"preference": "fast"}, {"size": 1}, []],
)
def test_an_impossible_budget_changes_nothing(changing: Running, body: object) -> None:
    with changing.client() as client:
        before = client.get("/v1/budget").json()
        response = client.put("/v1/budget", json=body)
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert client.get("/v1/budget").json() == before


def test_a_preference_decides_while_its_request_runs(changing: Running) -> None:
    engine, plans = changing.server.engine, []
    step = engine.step

    def noted(*arguments: object, **options: object) -> torch.Tensor:
        plans.append(engine.plan)
        return step(*arguments, **options)  # type: ignore[arg-type]

    engine.step = noted  # type: ignore[method-assign]
    try:
        with changing.client() as client:
            client.put("/v1/budget", json={"budget": "60%", "preference": "throughput"})
            for preference in ("throughput", "quality"):
                body = {
                    "model": changing.name,
                    "prompt": "fox",
                    "max_tokens": 3,
                    "temperature": 0,
                    "preference": preference,
                }
                assert client.post("/v1/completions", json=body).status_code == 200
    finally:
        engine.step = step  # type: ignore[method-assign]
    assert all(plan.quantized_experts > 0 for plan in plans[:3])
    assert all(plan.quantized_experts == 0 for plan in plans[3:])
    assert len(plans) == 6


def test_every_token_is_computed_under_exactly_one_plan(changing: Running, model: Path) -> None:
    """What the server computed during changes is what a quiet engine computes, plan by plan, to the last bit."""
    server = changing.server
    calls: list[tuple[Plan, torch.Tensor, list[int], list[int], torch.Tensor]] = []
    step, stop = server.engine.step, Event()
    samples: list[tuple[int, int]] = []

    def recorded(tokens: torch.Tensor, cache: object, slots: list[int], last_only: bool) -> torch.Tensor:
        assert last_only, "nobody asks for the log-probabilities of a prompt"
        lengths = [server.active.cache.lengths[slot] for slot in slots]
        plan = server.engine.plan
        logits = step(tokens, server.active.cache, slots)
        calls.append((plan, tokens.clone(), list(slots), lengths, logits.clone()))
        return logits

    def change() -> None:
        with changing.client() as client:
            for index in range(1000):
                if stop.is_set():
                    return
                budget, preference = [("100%", "throughput"), ("50%", "throughput"), ("70%", "quality")][index % 3]
                assert client.put("/v1/budget", json={"budget": budget, "preference": preference}).status_code == 200
                time.sleep(0.05)

    def watch() -> None:
        store = server.engine.store
        while not stop.is_set():
            # The limit is read first and last: between the two it may have changed.
            before, used, after = store.budget_bytes, store.bytes_fast, store.budget_bytes
            if before == after:
                samples.append((used, before))
            time.sleep(0.0005)

    def ask(number: int) -> dict[str, object]:
        with changing.client() as client:
            body = {"model": changing.name, "prompt": PROMPTS[number % 5], "max_tokens": 8, "seed": number}
            response = client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            return response.json()  # type: ignore[no-any-return]

    with changing.client() as client:
        # Start from one of the three: an earlier test may have left the server under another plan.
        client.put("/v1/budget", json={"budget": "100%", "preference": "throughput"})
        settled(client)
    server.engine.step = recorded  # type: ignore[method-assign, assignment]
    threads = [Thread(target=change), Thread(target=watch)]
    try:
        for thread in threads:
            thread.start()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(20)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        server.engine.step = step  # type: ignore[method-assign]

    for answer in answers:
        assert answer["usage"]["completion_tokens"] == 8 or answer["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    # One for each budget, and others where keys and values took memory from experts.
    assert len({call[0] for call in calls}) >= 3
    assert max(len(call[2]) for call in calls) > 1, "sequences were decoded together"
    quiet = Engine.load(model, plan=calls[0][0])
    cache = quiet.cache(6, 128)
    for plan, tokens, slots, lengths, logits in calls:
        if plan != quiet.plan:
            quiet.reconfigure(plan)
        for slot, length in zip(slots, lengths, strict=True):
            cache.lengths[slot] = length
        assert torch.equal(quiet.step(tokens, cache, slots), logits)
    # While memory is being freed the limit in force is still the larger one.
    largest = max(limit for _, limit in samples)
    assert all(used <= largest for used, _ in samples)
    assert len(samples) > 100


def test_a_change_takes_effect_after_the_step_that_runs(changing: Running) -> None:
    engine, started, go = changing.server.engine, Event(), Event()
    step, order = engine.step, []

    def slow(*arguments: object, **options: object) -> torch.Tensor:
        order.append(("step", engine.store.budget_bytes))
        if len(order) == 4:
            started.set()
            go.wait(10)
        return step(*arguments, **options)  # type: ignore[arg-type]

    with changing.client() as client, ThreadPoolExecutor(2) as pool:
        client.put("/v1/budget", json={"budget": "100%"})
        wide = engine.store.budget_bytes
        engine.step = slow  # type: ignore[method-assign]
        try:
            body = {"model": changing.name, "prompt": "a stitch", "max_tokens": 12, "temperature": 0}
            answer = pool.submit(client.post, "/v1/completions", json=body)
            assert started.wait(10)
            with changing.client() as other:
                change = pool.submit(other.put, "/v1/budget", json={"budget": "50%"})
                while not changing.server.active._calls:
                    time.sleep(0.001)
                go.set()
                assert change.result().status_code == 200
            assert answer.result().json()["usage"]["completion_tokens"] == 12
        finally:
            go.set()
            engine.step = step  # type: ignore[method-assign]
    limits = [limit for _, limit in order]
    assert limits[:4] == [wide] * 4
    assert all(limit < wide for limit in limits[4:])


def test_a_change_waits_for_the_read_of_one_expert_at_most(changing: Running) -> None:
    governor, store, scheduler = changing.server.governor, changing.server.engine.store, changing.server.active
    read, switch, reading, go = store._read, store.switch, Event(), Event()
    reads, read_before_switch = [], []

    def held(*arguments: object) -> object:
        reads.append(arguments)
        if len(reads) == 1:
            reading.set()
            go.wait(10)
        return read(*arguments)  # type: ignore[arg-type]

    def noted(*arguments: object) -> None:
        read_before_switch.append(len(reads))
        switch(*arguments)  # type: ignore[arg-type]

    with changing.client() as client:
        client.put("/v1/budget", json={"budget": "50%", "preference": "throughput"})
        settled(client)
        store._read, store.switch = held, noted  # type: ignore[method-assign, assignment]
        try:
            assert client.put("/v1/budget", json={"budget": "100%"}).status_code == 200
            assert reading.wait(10)
            change = scheduler.call(lambda: governor.set_budget(governor.whole_bytes // 2, "throughput"))
            while scheduler._calls:
                time.sleep(0.001)
            time.sleep(0.05)  # by now the engine's thread waits for the read
            assert not change.done()
            go.set()
            change.result(10)
        finally:
            go.set()
            store._read, store.switch = read, switch  # type: ignore[method-assign]
        settled(client)
    assert read_before_switch == [0, 1]
