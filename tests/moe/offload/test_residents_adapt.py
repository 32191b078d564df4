"""Residents that change while they are used: the same bits, the same budget, and the choice that the policy says."""

from __future__ import annotations

import time
import weakref
from functools import partial
from itertools import combinations
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, OpenedModel, open_model
from lumoe.moe.model.moe_layer import likely
from lumoe.moe.model.router import Router
from lumoe.moe.offload.eviction import Candidates
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.offload.guesses import Guesses
from lumoe.moe.offload.ledger import Ledger
from lumoe.moe.offload.storage import PageBuffer, Record
from lumoe.moe.offload.store import ExpertStore, bytes_needed
from lumoe.moe.offload.tier import always_wanted
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.plan import Plan

SHAPE = (3, 4)
HALF_LIFE = 3.0
IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(5))


class Watched(FileTier):
    """Files, with a count of the memory that is really mapped, and reads that can be held up or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped = self.most = self.limit = 0
        self._counting = Lock()
        self.go = Event()
        self.go.set()
        self.begun: list[Record] = []
        self.broken: list[Record] = []

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self.mapped += nbytes
            self.most = max(self.most, self.mapped)

    def allocate(self, nbytes: int) -> PageBuffer:
        # The thread that read an expert lets go of it an instant after it has handed it over.
        until = time.monotonic() + 1
        while self.mapped + nbytes > self.limit and time.monotonic() < until:
            time.sleep(0.001)
        buffer = super().allocate(nbytes)
        self._count(nbytes)
        weakref.finalize(buffer.view.obj, self._count, -nbytes)
        return buffer

    def load(self, buffer: PageBuffer, record: Record, dropped: Any = always_wanted) -> None:
        self.begun.append(record)
        self.go.wait(10)
        if record in self.broken:
            raise UserError("the disk is broken")
        super().load(buffer, record, dropped)


def plan_of(bits: list[int], resident: list[bool]) -> Plan:
    return Plan(np.array(bits).reshape(SHAPE), np.array(resident).reshape(SHAPE))


def watched(model: OpenedModel, plan: Plan, caching: Caching, budget: int | None = None) -> tuple[Engine, Watched]:
    """Return an engine, and its tier that says how much memory it maps."""
    tier = Watched()
    config = EngineConfig(policy=caching, swap_buffers=model.config.swap_buffers)
    tier.limit = (
        budget or model.decoder.nbytes + bytes_needed(model.source, plan, config.buffers)
    ) - model.decoder.nbytes
    return Engine(OpenedModel(model.decoder, model.source, tier, config), plan, budget), tier


def outputs(engine: Engine) -> torch.Tensor:
    """Logits of a prefill of two sequences and of decode steps of one."""
    cache = engine.cache(2, 16)
    found = [engine.step(IDS, cache, last_only=False).flatten()]
    found += [engine.step(IDS[:1, at : at + 1], cache, [0]).flatten() for at in range(3)]
    return torch.cat(found)


cachings = st.builds(
    Caching,
    st.sampled_from(["static", "lru", "lfru"]),
    st.sampled_from(["layer", "model"]),
    st.sampled_from([0.5, 4.0, 128.0]),
    st.integers(0, 3),
)
plans = st.tuples(
    st.lists(st.sampled_from([2, 3, 4, 8, 16]), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)


@given(first=plans, second=plans, caching=cachings, swap=st.integers(1, 3), spare=st.integers(0, 200_000))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_policy_changes_a_bit_or_takes_more_than_the_budget(
    model_bf16: Path,
    quantized: dict[int, Path],
    first: tuple[list[int], list[bool]],
    second: tuple[list[int], list[bool]],
    caching: Caching,
    swap: int,
    spare: int,
) -> None:
    model = open_model(model_bf16, list(quantized.values()), EngineConfig(policy=caching, swap_buffers=swap))
    needed = [model.bytes_needed(plan_of(*plan)) for plan in (first, second)]
    # The limits in force are those of the two plans, the second one's from its switch on.
    engine, tier = watched(model, plan_of(*first), caching, needed[0] + spare)
    expected = {}
    for plan in (first, second):
        near = Engine.load(model_bf16, list(quantized.values()), plan_of(plan[0], [True] * 12))
        expected[id(plan)] = outputs(near)
    for plan, budget in zip((first, second), needed, strict=True):
        engine.model.decoder.attach(engine.store)
        if plan is second:
            tier.limit = budget + spare - engine.decoder.nbytes
            engine.reconfigure(plan_of(*second), budget + spare)
            tier.most = tier.mapped
        for _ in range(3):
            assert torch.equal(outputs(engine), expected[id(plan)])
        assert engine.bytes_fast <= engine.budget_bytes == budget + spare
        assert tier.most <= engine.store.budget_bytes
    sizes = {bits: model.source.nbytes(bits) for bits in (2, 3, 4, 8, 16)}
    held = second_bytes = 0
    for at in np.argwhere(engine.store.resident()).tolist():
        held += sizes[int(engine.plan.bits[tuple(at)])]
    second_bytes = int(sum(sizes[b] for b, near in zip(*second, strict=True) if near))
    if caching.policy == "static":
        assert np.array_equal(engine.store.resident(), engine.plan.resident)
    assert held <= second_bytes + spare
    assert engine.metrics()["guessed_right"] <= engine.metrics()["guessed"] <= engine.metrics()["misses"] * 3 + 36


def value(policy: str, uses: list[tuple[int, int, int]], now: int, at: tuple[int, int]) -> float:
    """What an expert is worth by the (step, layer, expert) of its uses."""
    when = [step for step, *where in uses if tuple(where) == at]
    return max(when, default=-1) if policy == "lru" else sum(2.0 ** (-(now - step) / HALF_LIFE) for step in when)


@given(seed=st.integers(0, 10_000), policy=st.sampled_from(["lru", "lfru"]), scope=st.sampled_from(["layer", "model"]))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_residents_are_those_that_the_policy_says(model_bf16: Path, seed: int, policy: Any, scope: Any) -> None:
    """Against the definition: a value summed anew each time, one expert moved at a time."""
    generator = np.random.default_rng(seed)
    start = generator.random(SHAPE) < 0.5
    start[0, 0], start[0, 1] = True, False
    source = open_model(model_bf16).source
    store = ExpertStore(source, Plan(np.full(SHAPE, 16), start), None, Caching(policy, scope, HALF_LIFE))
    resident, uses = start.copy(), []
    for step in range(12):
        for layer in range(SHAPE[0]):
            wanted = sorted(generator.choice(4, int(generator.integers(1, 3)), replace=False).tolist())
            missed = [index for index in wanted if not resident[layer, index]]
            uses += [(step, layer, index) for index in wanted]
            list(store.fetch(layer, wanted))

            worth = partial(value, policy, uses, step)
            for index in missed:
                others = [
                    (where, e) for where, e in np.argwhere(resident).tolist()
                    if (scope == "model" or where == layer) and not (where == layer and e in wanted)
                ]  # fmt: skip
                if others:
                    victim = min(others, key=worth)
                    if policy == "lru" or worth((layer, index)) >= worth(victim):
                        resident[victim], resident[layer, index] = False, True
            assert np.array_equal(store.resident(), resident), (step, layer)


def test_an_expert_of_more_worth_is_passed_by(model_bf16: Path) -> None:
    plan = plan_of([16] * 12, [True, False, False, False] * 3)
    store = ExpertStore(open_model(model_bf16).source, plan, None, Caching("lfru", half_life=100.0))
    for wanted in ([0], [0], [0], [1], [1]):
        list(store.fetch(0, wanted))
    assert store.resident()[0].tolist() == [True, False, False, False], "three uses against two newer ones"
    for _ in range(2):
        list(store.fetch(0, [1]))
    assert store.resident()[0].tolist() == [False, True, False, False]


def test_calibration_is_what_the_policy_starts_from(model_bf16: Path, quantized: dict[int, Path]) -> None:
    model = open_model(model_bf16, quantized[4], EngineConfig(policy="lfru"))
    assert model.frequencies is not None
    store = Engine(model, plan_of([4] * 12, [True] * 6 + [False] * 6)).store
    assert np.array_equal(store.values.now.argsort(axis=1), model.frequencies.argsort(axis=1))
    assert open_model(model_bf16, quantized[4]).frequencies is None, "nothing else asks for them"


@given(seed=st.integers(0, 10_000), needed=st.integers(-3, 20))
def test_victims_are_the_least_worthy_that_suffice(seed: int, needed: int) -> None:
    generator = np.random.default_rng(seed)
    worth, sizes = generator.permutation(6).reshape(2, 3).astype(float), generator.integers(1, 6, (2, 3))
    free, most = generator.random((2, 3)) < 0.8, float(generator.integers(0, 7))
    found = Candidates(worth, sizes, free).victims(needed, most)
    usable = [at for at in np.ndindex(2, 3) if free[at] and worth[at] <= most]
    enough = [
        set(group)
        for count in range(len(usable) + 1)
        for group in combinations(usable, count)
        if sum(int(sizes[at]) for at in group) >= needed
    ]
    if found is None:
        assert not enough
        return
    assert set(found) in enough
    assert not any(set(found) - {at} in enough for at in found), "one went in vain"
    # No choice whose worthiest victim is worth less would have sufficed.
    assert max((worth[at] for at in found), default=-1.0) == min(
        max((worth[at] for at in group), default=-1.0) for group in enough
    )


def test_a_place_is_made_of_smaller_ones_within_the_budget(model_bf16: Path, quantized: dict[int, Path]) -> None:
    """One expert at 8 bits takes the place of two at 4; later they come back into it one by one."""
    bits = [8, 4, 4, 4] + [4] * 8
    model = open_model(model_bf16, quantized[4])
    sizes = {value: model.source.nbytes(value) for value in (4, 8)}
    assert sizes[4] < sizes[8] <= 2 * sizes[4], "the test wants two of them"
    engine, tier = watched(model, plan_of(bits, [False, True, True, True] + [False] * 8), Caching("lru"))
    for wanted in ([1], [2], [3], [0]):
        list(engine.store.fetch(0, wanted))
        assert tier.most <= engine.store.budget_bytes
    assert engine.store.resident()[0].tolist() == [True, False, False, True], "those used longest ago went"
    for wanted in ([3], [1], [2]):
        list(engine.store.fetch(0, wanted))
    assert engine.store.resident()[0].tolist() == [False, True, True, True]
    assert tier.most <= engine.store.budget_bytes


def test_a_right_guess_is_read_once_and_a_wrong_one_in_vain(model_bf16: Path) -> None:
    model = open_model(model_bf16)
    engine, tier = watched(model, plan_of([16] * 12, [False] * 12), Caching(prefetch=2))
    store, size = engine.store, model.source.nbytes(16)
    assert engine.model.bytes_needed(engine.plan) - engine.decoder.nbytes == 4 * size, "two guesses, two misses"
    store.expect(1, lambda: [3, 1, 2])
    list(store.fetch(0, [0]))
    while len(tier.begun) < 3:
        pass
    assert [
        record is model.source.record(*at, 16) for record, at in zip(tier.begun, ((0, 0), (1, 3), (1, 1)), strict=True)
    ]
    assert sorted(index for index, _ in store.fetch(1, [0, 3])) == [0, 3]
    assert len(tier.begun) == 4, "3 was there, 0 was not"
    assert (store.counters.guessed, store.counters.guessed_right) == (2, 1)
    assert (store.counters.hits, store.counters.misses) == (0, 3)


def test_a_guess_waits_for_what_is_needed_and_goes_if_it_is_late(model_bf16: Path) -> None:
    engine, tier = watched(open_model(model_bf16), plan_of([16] * 12, [False] * 12), Caching(prefetch=2))
    store, source = engine.store, engine.model.source
    tier.go.clear()
    store.expect(1, lambda: [2])
    reads = store.fetch(0, [0, 1, 3])  # more than there are swap buffers
    tier.go.set()
    assert {index for index, _ in reads} == {0, 1, 3}
    expected = [source.record(*at, 16) for at in ((0, 0), (0, 1), (0, 3), (1, 2))]
    while len(tier.begun) < 4:
        pass
    assert [record is right for record, right in zip(tier.begun, expected, strict=True)] == [True] * 4
    guesses, size = Guesses(tier, Ledger(tier), store._read), source.nbytes(16)
    guesses._ledger.limit = 2 * size
    guesses.resize(2 * size)
    tier.go.clear()
    guesses.begin(1, [0, 3], [size, size], engine.plan)
    while len(tier.begun) < 5:
        pass
    kept = guesses.keep(1, [3, 0])
    tier.go.set()
    assert list(kept) == [0], "the reader was at 0; 3 is read as any other miss"
    assert kept[0].task.result() is not None
    assert len(tier.begun) == 5


def test_a_fault_in_a_guess_is_told_when_the_expert_is_needed(model_bf16: Path) -> None:
    engine, tier = watched(open_model(model_bf16), plan_of([16] * 12, [False] * 12), Caching("lru", prefetch=1))
    store = engine.store
    tier.broken = [engine.model.source.record(1, 2, 16)]
    for needed in ([0], [1]):
        store.expect(1, lambda: [2])
        list(store.fetch(0, [0]))
        list(store.fetch(1, needed))
    store.expect(1, lambda: [2])
    list(store.fetch(0, [0]))
    with pytest.raises(UserError, match="broken"):
        list(store.fetch(1, [2]))
    tier.broken = []
    used = store.bytes_fast
    assert [index for index, _ in store.fetch(1, [2])] == [2]
    store.expect(1, lambda: [2])
    list(store.fetch(0, [0]))
    engine.reconfigure(engine.plan)
    assert store.bytes_fast <= used
    assert torch.equal(outputs(engine), outputs(Engine.load(model_bf16)))


def test_a_router_tells_what_the_next_layer_will_likely_want(model_bf16: Path) -> None:
    gate = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    total = dict.fromkeys(range(6), 0.0)
    for row in (hidden @ gate.T).softmax(dim=-1):
        best = row.topk(2)
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            total[index] += value / float(best.values.sum())
    expected = sorted((index for index in total if total[index]), key=lambda index: -total[index])
    assert likely(Router(gate, 2), hidden) == expected


def test_guesses_come_true_as_often_as_the_routers_agree(model_bf16: Path) -> None:
    """Counted beside the store: what the next router says of this layer's input, against what it then chose."""
    engine = Engine.load(model_bf16, plan=plan_of([16] * 12, [False] * 12), policy=Caching(prefetch=2))
    inputs: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    expect = engine.store.expect

    def noted(layer: int, guess: partial[list[int]]) -> None:
        inputs.append(guess.args[1])
        expect(layer, guess)

    engine.store.expect = noted  # type: ignore[method-assign, assignment]
    engine.observe(lambda layer, experts: chosen.append(experts))
    cache = engine.cache(1, 8)
    for at in range(8):
        engine.step(IDS[:1, at : at + 1], cache)
    checkpoint, right = Checkpoint(model_bf16), 0
    for step in range(8):
        for layer in (0, 1):
            gate = checkpoint.tensor(f"model.layers.{layer + 1}.block_sparse_moe.gate.weight").bfloat16()
            guessed = (inputs[step * 2 + layer] @ gate.T).float().topk(2).indices
            right += len({*guessed.flatten().tolist()} & {*chosen[step * 3 + layer + 1].flatten().tolist()})
    found = engine.metrics()
    assert 0 < found["guessed_right"] <= right
    assert found["guessed"] <= 8 * 2 * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"policy": "mru"}, "'mru' is none"), ({"scope": "row"}, "'row' is none"), ({"prefetch": -1}, "at least 0")],
)
def test_what_is_no_policy_is_refused(model_bf16: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Engine.load(model_bf16, policy=wrong["policy"] if "policy" in wrong else Caching(**wrong))


def test_nothing_is_read_ahead_where_reads_wait_for_computation(model_bf16: Path) -> None:
    source = open_model(model_bf16).source
    with pytest.raises(UserError, match="prefetch"):
        ExpertStore(
            source, plan_of([16] * 12, [False] * 12), None, Caching(prefetch=1), tier=FileTier(overlapped=False)
        )
