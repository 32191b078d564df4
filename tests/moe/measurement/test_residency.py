"""Replayed policies against brute force, the store itself, and what must hold for any trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.residency import compare, frequencies, lru_hit_rate, most_used, record_trace, static_hit_rate
from lumoe.moe.planning.plan import Plan


def random_trace(seed: int, tokens: int = 50, layers: int = 2, experts: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([[generator.permutation(experts)[:2] for _ in range(layers)] for _ in range(tokens)])


def test_static_hits_counted_by_hand() -> None:
    trace = np.array([[[0, 1]], [[1, 2]], [[3, 0]]])
    assert static_hit_rate(trace, np.array([[True, True, False, False]])) == 4 / 6


def test_lru_hits_counted_by_hand() -> None:
    # Two places, experts 0 and 1 at first: {0,1} hits twice; {1,2} hits 1, 2 replaces 0; {0,3} misses twice.
    trace = np.array([[[0, 1]], [[1, 2]], [[0, 3]], [[3, 0]]])
    assert lru_hit_rate(trace, 2, 4) == (2 + 1 + 0 + 2) / 8


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_no_fixed_choice_beats_the_oracle_and_more_residents_never_hurt(seed: int) -> None:
    trace = random_trace(seed)
    table = compare(trace, np.random.default_rng(seed).random((2, 6)), range(7), [0, 1], "c")
    rates = table.pivot_table(index="resident_share", columns="policy", values="hit_rate", aggfunc="max")
    assert (rates["oracle"] >= rates[["random", "frequency"]].max(axis=1)).all()
    assert (rates.loc[0.0] == 0).all()
    assert (rates.loc[1.0] == 1).all()
    assert rates["oracle"].is_monotonic_increasing


def test_frequencies_sum_to_the_experts_per_token() -> None:
    assert np.allclose(frequencies(random_trace(0), 6).sum(axis=1), 2)


def test_the_store_hits_as_the_replay_says(model_bf16: Path) -> None:
    sequences = torch.randint(0, 96, (1, 30), generator=torch.Generator().manual_seed(0))
    plan = Plan(np.full((3, 4), 16), np.arange(12).reshape(3, 4) % 4 < 2)
    for policy in ("static", "lru"):
        engine = Engine.load(model_bf16, plan=plan, policy=policy)  # type: ignore[arg-type]
        # Routes of this very run: kernels for many tokens round otherwise, and a near tie may fall otherwise.
        chosen: list[list[list[int]]] = [[] for _ in range(3)]
        engine.observe(lambda layer, experts, chosen=chosen: chosen[layer].extend(experts.tolist()))
        cache = engine.cache(1, 30)
        for position in range(30):
            engine.step(sequences[:, position : position + 1], cache)
        trace = np.array(chosen).transpose(1, 0, 2)
        assert (record_trace(Engine.load(model_bf16), sequences) == trace).mean() >= 0.95
        expected = static_hit_rate(trace, plan.resident) if policy == "static" else lru_hit_rate(trace, 2, 4)
        assert engine.metrics()["hits"] == round(expected * trace.size)


def test_most_used_and_bad_slots() -> None:
    assert most_used(np.array([[0.1, 0.9, 0.5]]), 2).tolist() == [[False, True, True]]
    with pytest.raises(UserError, match="6 experts"):
        compare(random_trace(0), np.zeros((2, 6)), [7], [0], "c")
