"""A server whose residents change while it answers: the same answers, within the budget, and it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import serving

from lumoe.moe.planning.caching import Caching
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

ADAPTIVE = Caching("lfru", "model", 16.0, prefetch=2)


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_answers_are_the_same_and_the_state_tells_of_the_policy(model: Path, share: float) -> None:
    texts, states, metrics = [], [], []
    for policy in (Caching(), ADAPTIVE):
        setup = Setup(model, budget=f"{share:.0%}", preference="quality", dtype="float32", policy=policy)
        with serving(setup) as running, running.client() as client:
            governor = running.server.governor
            body = {"model": running.name, "prompt": "a stitch in", "max_tokens": 24, "temperature": 0}
            texts.append([client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2)])
            assert governor.held_bytes <= governor.budget_bytes
            states.append(client.get("/v1/state").json())
            metrics.append(client.get("/metrics").text)
    assert texts[0] == texts[1]
    assert states[0]["caching"] == {"policy": "static", "scope": "layer", "half_life": 128.0, "prefetch": 0}
    assert states[1]["caching"] == {"policy": "lfru", "scope": "model", "half_life": 16.0, "prefetch": 2}
    assert states[0]["guessed"] == 0 < states[1]["guessed_right"] <= states[1]["guessed"]
    wrong = states[1]["guessed"] - states[1]["guessed_right"]
    assert f'lumoe_expert_guesses_total{{asked="no"}} {float(wrong)}' in metrics[1].splitlines()


def test_the_smallest_budget_has_room_for_guesses(model: Path) -> None:
    least = []
    for policy in (Caching(), ADAPTIVE):
        server = load(Setup(model, dtype="float32", policy=policy), Limits(slots=2, context=32))
        try:
            least.append(server.governor.minimum_bytes)
            server.governor.set_budget(least[-1], "quality")
            assert server.engine.bytes_fast <= least[-1]
            largest = max(server.engine.memory.expert.values())
        finally:
            server.governor.close()
    assert least[1] - least[0] == 2 * largest
