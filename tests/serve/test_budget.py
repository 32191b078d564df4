"""The budget over HTTP: what a plan would give, what it gives, and a budget that follows the control group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Running, serving, settled

from lumoe import memory_group
from lumoe.errors import UserError
from lumoe.files import write_json
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.profile import measure_hardware
from lumoe.moe.serve.follower import SPARE_BYTES
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

LIMITS = Limits(slots=4, context=128)


@pytest.fixture(scope="module")
def measurements(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    profile = measure_hardware(Engine.load(model), [8, 16], "here", 0.01)
    write_json(folder / "machine.json", profile.model_dump(mode="json"))
    return folder


@pytest.fixture(scope="module")
def found(model: Path, measurements: Path) -> Iterator[Running]:
    with serving(Setup(model, budget="60%", measurements=measurements), LIMITS) as running:
        yield running


def test_a_preview_is_what_the_change_then_does_and_changes_nothing(found: Running) -> None:
    with found.client() as client:
        before = settled(client)
        for body in ({"budget": "80%"}, {"budget": "50%", "preference": "quality"}, {"preference": "quality"}, {}):
            preview = client.post("/v1/budget/preview", json=body).json()
            assert settled(client)["plan"] == before["plan"]
            changed = client.put("/v1/budget", json=body).json()
            assert changed["plan"] == preview
            state = settled(client)
            assert state["bytes_fast"] == preview["bytes_planned"] <= state["budget_bytes"] == preview["budget_bytes"]
            assert state["resident_experts"] == preview["resident_experts"]
            assert state["quantized_experts"] == preview["quantized_experts"]
            assert preview["context_tokens"] == state["kv_limit_bytes"] // 8192 * 16 >= LIMITS.context
            assert preview["predicted"]["tokens_per_s"] > 0
            client.put("/v1/budget", json={"budget": before["budget_bytes"], "preference": "throughput"})
            settled(client)
        for wrong in ({"budget": "1%"}, {"budget": "cgroup "}, {"size": 1}):
            assert client.post("/v1/budget/preview", json=wrong).status_code == 400


def test_the_prediction_stands_beside_what_was_measured(found: Running) -> None:
    with found.client() as client:
        client.put("/v1/budget", json={"budget": "70%"})
        settled(client)
        body = {"model": found.name, "prompt": "the quick", "max_tokens": 30, "temperature": 0}
        client.post("/v1/completions", json=body)
        state = client.get("/v1/budget").json()
        work = found.server.governor.planner.costs.workload  # type: ignore[union-attr]
        assert state["plan"]["predicted"]["new_tokens"] == work.new_tokens
        # Both are of this machine and this model; on busy cores neither is exact.
        assert 0.02 < state["measured"]["decode_s"] / state["plan"]["predicted"]["decode_s"] < 50
        client.put("/v1/budget", json={"budget": "100%"})
        client.post("/v1/completions", json={**body, "max_tokens": 1})
        assert client.get("/v1/budget").json()["measured"]["decode_s"] is None, "that was another plan"


def wait_for(what: Callable[[], bool]) -> bool:
    for _ in range(500):
        if what():
            return True
        time.sleep(0.01)
    return False


def test_the_budget_follows_the_group(found: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    governor = found.server.governor
    whole = governor.whole_bytes
    left = [whole * 6 // 10]

    def room() -> int:
        # What is left of the group's limit beside what this process holds.
        return left[0] + SPARE_BYTES - governor.held_bytes

    monkeypatch.setattr(memory_group, "room_bytes", room)
    with found.client() as client:
        state = client.put("/v1/budget", json={"budget": "cgroup"}).json()
        assert state["follows"] == "cgroup"
        assert state["budget_bytes"] == pytest.approx(left[0], rel=0.05)
        for limit in (governor.minimum_bytes + 20_000, whole, whole * 7 // 10):
            left[0] = limit
            assert wait_for(lambda limit=limit: abs(governor.budget_bytes - limit) < 0.05 * limit), limit  # type: ignore[misc]
            assert client.get("/v1/budget").json()["follows"] == "cgroup"
        left[0] = 1000
        assert wait_for(lambda: governor.budget_bytes == governor.minimum_bytes)
        assert client.put("/v1/budget", json={"budget": "60%"}).json()["follows"] is None
        time.sleep(0.6)
        assert governor.budget_bytes == round(0.6 * whole)


def test_where_no_group_limits_that_is_said(found: Running, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_group, "room_bytes", lambda: None)
    with found.client() as client:
        refused = client.put("/v1/budget", json={"budget": "cgroup"})
        assert refused.status_code == 400
        assert "no control group limits the memory" in refused.json()["error"]["message"]
    with pytest.raises(UserError, match="no control group limits the memory"):
        load(Setup(model, budget="cgroup"), LIMITS)


def test_a_restart_follows_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_group, "room_bytes", lambda: 600_000 + SPARE_BYTES)
    state = tmp_path / "state.json"
    with serving(Setup(model, budget="100%", state=state), LIMITS) as running, running.client() as client:
        assert client.get("/v1/budget").json()["follows"] is None
        assert client.put("/v1/budget", json={"budget": "cgroup"}).status_code == 200
    with serving(Setup(model, budget="100%", state=state), LIMITS) as running, running.client() as client:
        assert client.get("/v1/budget").json()["follows"] == "cgroup"
