"""The store: never over budget, never a different bit, whatever lies where and whatever changes meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Plan

SHAPE = (3, 4)
IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(5))


@contextmanager
def sampled(engine: Engine) -> Iterator[list[tuple[int, int]]]:
    """Sample (bytes, budget) of the store from another thread while the body runs."""
    samples: list[tuple[int, int]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            samples.append((engine.store.bytes_fast, engine.store.budget_bytes))
            time.sleep(0)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def plan_of(bits: list[int], resident: list[bool]) -> Plan:
    return Plan(np.array(bits).reshape(SHAPE), np.array(resident).reshape(SHAPE))


def folders(quantized: dict[int, Path]) -> list[Path]:
    return list(quantized.values())


def outputs(engine: Engine) -> torch.Tensor:
    """Logits of a prefill of two sequences and of a decode step of one: both ways through a layer."""
    cache = engine.cache(2, 16)
    prefill = engine.step(IDS, cache, last_only=False)
    return torch.cat([prefill.flatten(), engine.step(IDS[:1, :1], cache, [0]).flatten()])


plans = st.tuples(
    st.lists(st.sampled_from([2, 3, 4, 8, 16]), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)


@given(plan=plans, policy=st.sampled_from(["static", "lru"]), swap=st.integers(1, 3))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_residency_never_changes_a_bit(
    model_bf16: Path,
    quantized: dict[int, Path],
    plan: tuple[list[int], list[bool]],
    policy: str,
    swap: int,
) -> None:
    near = Engine.load(model_bf16, folders(quantized), plan_of(plan[0], [True] * 12))
    far = Engine.load(model_bf16, folders(quantized), plan_of(*plan), policy=policy, swap_buffers=swap)  # type: ignore[arg-type]
    expected = outputs(near)
    for _ in range(3):  # with lru the residents differ from round to round
        assert torch.equal(outputs(far), expected)
    assert far.store.bytes_fast <= far.store.budget_bytes
    if policy == "static":
        assert np.array_equal(far.store.resident(), far.plan.resident)


@given(first=plans, second=plans)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reconfigured_engine_equals_a_fresh_one(
    model_bf16: Path,
    quantized: dict[int, Path],
    first: tuple[list[int], list[bool]],
    second: tuple[list[int], list[bool]],
) -> None:
    engine = Engine.load(model_bf16, folders(quantized), plan_of(*first))
    engine.reconfigure(plan_of(*second))
    fresh = Engine.load(model_bf16, folders(quantized), plan_of(*second))
    assert torch.equal(outputs(engine), outputs(fresh))
    assert np.array_equal(engine.store.resident(), plan_of(*second).resident)
    assert engine.bytes_fast == fresh.bytes_fast


@pytest.mark.parametrize("policy", ["static", "lru"])
def test_every_step_during_changes_is_one_of_the_plans(
    model_bf16: Path, quantized: dict[int, Path], policy: str
) -> None:
    generator = np.random.default_rng(0)
    choices = [
        plan_of(generator.choice([4, 8, 16], 12).tolist(), generator.choice([True, False], 12).tolist())
        for _ in range(4)
    ]
    expected = [outputs(Engine.load(model_bf16, folders(quantized), plan))[: 2 * 12 * 96] for plan in choices]
    engine = Engine.load(model_bf16, folders(quantized), choices[0], policy=policy)  # type: ignore[arg-type]
    budget = max(engine.model.bytes_needed(plan) for plan in choices)
    faults: list[BaseException] = []

    def change() -> None:
        try:
            for round_ in range(40):
                engine.reconfigure(choices[round_ % 4], budget)
        except BaseException as error:
            faults.append(error)

    changer = threading.Thread(target=change)
    seen = set()
    with sampled(engine) as samples:
        changer.start()
        while changer.is_alive():
            got = engine.step(IDS, engine.cache(2, 16), last_only=False).flatten()
            seen.add(next((i for i, value in enumerate(expected) if torch.equal(got, value)), None))
        changer.join()
    assert not faults
    assert None not in seen
    assert len(seen) > 1
    assert all(used <= limit for used, limit in samples)


@pytest.mark.parametrize("policy", ["static", "lru"])
def test_a_miss_of_an_expert_that_is_to_stay_brings_it_to_its_place(
    model_bf16: Path, quantized: dict[int, Path], policy: str
) -> None:
    # 16-bit residents that are not there yet beside 4-bit misses: no swap buffer is large enough for them.
    small, target = plan_of([4] * 12, [False] * 12), plan_of([16] * 6 + [4] * 6, [True] * 6 + [False] * 6)
    everything = plan_of([16] * 12, [True] * 12)
    engine = Engine.load(model_bf16, folders(quantized), small, policy=policy)  # type: ignore[arg-type]
    for plan in (target, everything):
        engine.store.switch(plan)
        assert torch.equal(outputs(engine), outputs(Engine.load(model_bf16, folders(quantized), plan)))
    assert engine.store.bytes_fast <= engine.store.budget_bytes
    while engine.store.load_next():
        pass
    assert engine.store.resident().all()
    assert engine.store.bytes_fast == engine.store.budget_bytes


def test_shrinking_frees_before_it_takes(model_bf16: Path, quantized: dict[int, Path]) -> None:
    large, small = plan_of([16] * 12, [True] * 12), plan_of([4] * 12, [True] * 6 + [False] * 6)
    engine = Engine.load(model_bf16, folders(quantized), large)
    before = engine.store.bytes_fast
    limit = engine.model.bytes_needed(small) - engine.decoder.nbytes
    with sampled(engine) as samples:
        engine.reconfigure(small, engine.decoder.nbytes + limit)
    used = [value for value, _ in samples]
    freed = next((index for index, value in enumerate(used) if value <= limit), len(used))
    assert used[:freed] == sorted(used[:freed], reverse=True), "nothing is taken before enough is freed"
    assert max(used) <= before
    assert all(value <= limit for value in used[freed:])
    assert engine.store.bytes_fast == limit < before


def test_counters_add_up(model_bf16: Path) -> None:
    plan = plan_of([16] * 12, [index % 4 == 0 for index in range(12)])
    engine = Engine.load(model_bf16, plan=plan)
    chosen: list[tuple[int, torch.Tensor]] = []
    engine.observe(lambda layer, experts: chosen.append((layer, experts)))
    before = engine.metrics()
    engine.generate(IDS[0], 5)
    after = engine.metrics()
    used = [(layer, expert) for layer, experts in chosen for expert in experts.unique().tolist()]
    missed = [place for place in used if not plan.resident[place]]
    assert after["misses"] - before["misses"] == len(missed)
    assert after["hits"] - before["hits"] == len(used) - len(missed)
    moved = sum(engine.store.source.record(layer, expert, 16).nbytes for layer, expert in missed)
    assert after["bytes_moved"] - before["bytes_moved"] == moved


def test_budget_below_the_plan_is_refused_and_changes_nothing(model_bf16: Path) -> None:
    engine = Engine.load(model_bf16, plan=plan_of([16] * 12, [False] * 12))
    held, needed = engine.bytes_fast, engine.model.bytes_needed(plan_of([16] * 12, [True] * 12))
    with pytest.raises(UserError, match=r"1 more than the budget leaves"):
        engine.reconfigure(plan_of([16] * 12, [True] * 12), needed - 1)
    assert engine.bytes_fast == held
    with pytest.raises(UserError, match="does not hold"):
        Engine.load(model_bf16, budget_bytes=engine.decoder.nbytes - 1)
    with pytest.raises(UserError, match="no experts at 4 bits"):
        engine.reconfigure(plan_of([4] * 12, [True] * 12))
    with pytest.raises(UserError, match="made for"):
        engine.reconfigure(Plan.uniform(2, 4))


def test_least_recently_used_keeps_what_is_used(model_bf16: Path) -> None:
    plan = plan_of([16] * 12, [True, True, False, False] * 3)
    store = Engine.load(model_bf16, plan=plan, policy="lru").store
    for wanted in ([0], [2], [0], [3]):  # 1 goes for 2, then 2 for 3
        list(store.fetch(0, wanted))
    assert store.resident()[0].tolist() == [True, False, False, True]
    assert store.resident()[1].tolist() == [True, True, False, False]


def test_a_failing_read_is_reported_and_leaves_the_store_usable(model_bf16: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(model_bf16, copy)
    engine = Engine.load(copy, plan=plan_of([16] * 12, [False] * 12))
    expected = engine.logits(IDS)
    used = engine.store.bytes_fast
    originals = {path: path.read_bytes() for path in copy.glob("*.safetensors")}
    for path in originals:
        os.truncate(path, 4096)
    with pytest.raises(UserError, match="cut off"):
        engine.logits(IDS)
    for path, content in originals.items():
        path.write_bytes(content)
    assert torch.equal(engine.logits(IDS), expected)
    assert engine.store.bytes_fast == used
