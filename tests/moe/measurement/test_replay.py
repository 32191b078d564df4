"""Replayed policies against brute force and plain loops, and what must hold for any trace."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.moe.measurement.replay import frequencies, most_used, replay, replay_best, replay_fixed
from lumoe.moe.measurement.synthetic_routes import Drifting
from lumoe.moe.planning.caching import Caching, Scope

FEW = settings(deadline=None, max_examples=25)
scopes = st.sampled_from(["layer", "model"])


def random_trace(seed: int, tokens: int = 50, layers: int = 2, experts: int = 6, k: int = 2) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([[generator.permutation(experts)[:k] for _ in range(layers)] for _ in range(tokens)])


def first(layers: int, experts: int, slots: int) -> np.ndarray:
    """The first experts of each layer, as a start."""
    return np.broadcast_to(np.arange(experts) < slots, (1, layers, experts))


def hits(trace: np.ndarray, caching: Caching, slots: int, experts: int) -> int:
    start = first(trace.shape[1], experts, slots)
    return int(replay(trace, [caching], start).sum())


def best_by_trying_everything(look_ups: list[set[int]], members: int, places: int) -> int:
    """Most hits of any schedule: what is resident next is any choice of residents and those looked up."""
    value = {frozenset(start): 0 for start in combinations(range(members), places)}
    for wanted in look_ups:
        following: dict[frozenset[int], int] = {}
        for held, found in value.items():
            there = sorted(held | wanted)
            for kept in combinations(there, min(places, len(there))):
                key = frozenset(kept)
                following[key] = max(following.get(key, 0), found + len(held & wanted))
        value = following
    return max(value.values())


@given(seed=st.integers(0, 1000), slots=st.integers(0, 4), k=st.integers(1, 2))
@FEW
def test_belady_is_the_optimum_of_each_layer(seed: int, slots: int, k: int) -> None:
    trace = random_trace(seed, tokens=9, layers=2, experts=4, k=k)
    found = replay_best(trace, [slots], 4)[0]
    for layer in range(2):
        expected = best_by_trying_everything([{*token} for token in trace[:, layer].tolist()], 4, slots)
        assert found[:, layer].sum() == expected


@given(seed=st.integers(0, 1000), slots=st.integers(1, 2))
@FEW
def test_belady_is_the_optimum_of_the_model(seed: int, slots: int) -> None:
    trace = random_trace(seed, tokens=5, layers=2, experts=3)
    look_ups = [{layer * 3 + expert for expert in token[layer]} for token in trace.tolist() for layer in range(2)]
    expected = best_by_trying_everything(look_ups, 6, 2 * slots)
    assert replay_best(trace, [slots], 3, "model").sum() == expected


@given(seed=st.integers(0, 1000), scope=scopes)
@FEW
def test_no_policy_beats_belady_and_more_places_never_hurt_it(seed: int, scope: Scope) -> None:
    trace = random_trace(seed, layers=3)
    slots = range(7)
    start = np.stack([most_used(frequencies(trace, 6), count, scope) for count in slots])
    best = replay_best(trace, slots, 6, scope).sum(axis=(1, 2, 3))
    cachings = [Caching("lru", scope), *(Caching("lfru", scope, life) for life in (0.5, 4.0, 1e6))]
    changing = replay(trace, cachings, start, frequencies(trace, 6)).sum(axis=(2, 3, 4))
    assert (changing <= best).all()
    assert all(replay_fixed(trace, held).sum() <= most for held, most in zip(start, best, strict=True))
    assert (np.diff(best) >= 0).all()
    assert (best[0], best[-1], changing[:, -1].min()) == (0, trace.size, trace.size)


def by_hand(trace: np.ndarray, slots: int, experts: int, worth: str) -> int:
    """LRU or LFU with plain loops, each layer by itself."""
    found = 0
    for layer in range(trace.shape[1]):
        value, resident = dict.fromkeys(range(experts), 0), set(range(slots))
        for now, chosen in enumerate(trace[:, layer].tolist(), start=1):
            found += len(resident & {*chosen})
            missed = [expert for expert in chosen if expert not in resident]
            for expert in chosen:
                value[expert] = now if worth == "lru" else value[expert] + 1
            for expert in missed:
                spare = sorted(resident - {*chosen})
                if spare:
                    victim = min(spare, key=value.__getitem__)
                    if worth == "lru" or value[expert] >= value[victim]:
                        resident = resident - {victim} | {expert}
    return found


@given(seed=st.integers(0, 1000), slots=st.integers(0, 6), k=st.integers(1, 3))
@FEW
def test_lru_and_lfu_are_those_of_plain_loops(seed: int, slots: int, k: int) -> None:
    trace = random_trace(seed, k=k)
    assert hits(trace, Caching("lru"), slots, 6) == by_hand(trace, slots, 6, "lru")
    # So long a life that float64 sees no decay.
    assert hits(trace, Caching("lfru", half_life=1e18), slots, 6) == by_hand(trace, slots, 6, "lfu")


@given(seed=st.integers(0, 1000), slots=st.integers(0, 6))
@FEW
def test_lfru_that_forgets_at_once_is_lru(seed: int, slots: int) -> None:
    # With one look-up a step no two experts were used last at the same time, which each would settle in its own way.
    trace = random_trace(seed, k=1)
    assert hits(trace, Caching("lfru", half_life=0.5), slots, 6) == hits(trace, Caching("lru"), slots, 6)


def test_lru_hits_counted_by_hand() -> None:
    # Two places, experts 0 and 1 at first: {0,1} hits twice; {1,2} hits 1, 2 replaces 0; {0,3} misses twice.
    trace = np.array([[[0, 1]], [[1, 2]], [[0, 3]], [[3, 0]]])
    assert hits(trace, Caching("lru"), 2, 4) == 2 + 1 + 0 + 2


def test_in_the_whole_model_a_layer_takes_a_place_that_another_does_not_use() -> None:
    # Two places a layer. Layer 0 goes on with expert 0; layer 1 goes round three, which two places never hold.
    trace = np.array([[[0], [token % 3]] for token in range(12)])
    apart, together = (
        replay(trace, [Caching("lru", scope)], first(2, 3, 2)).sum(axis=(0, 1, 2, 4)).tolist()
        for scope in ("layer", "model")
    )
    assert apart == [12, 2]
    assert together == [12, 11]
    assert replay_best(trace, [2], 3, "model").sum() == 24


def test_what_is_guessed_is_looked_for_before_the_look_up_changes_anything() -> None:
    trace, guesses = np.array([[[2]], [[2]]]), np.array([[[0]], [[0]]])
    near = replay(trace, [Caching("lru")], first(1, 3, 1), guesses=guesses)[0, 0, :, 0]
    assert near.tolist() == [[False, True], [True, False]]


def test_most_used_of_each_layer_and_of_the_model() -> None:
    usage = np.array([[0.1, 0.9, 0.5], [0.2, 0.0, 0.1]])
    assert most_used(usage, 1).tolist() == [[False, True, False], [True, False, False]]
    assert most_used(usage, 1, "model").tolist() == [[False, True, True], [False, False, False]]
    assert np.allclose(frequencies(random_trace(0), 6).sum(axis=1), 2)


def test_synthetic_routing_is_as_skewed_as_stated_and_drifts() -> None:
    routes = Drifting(experts=8, top_k=1, exponent=1.0, period=4000, shift=3, layers=2)
    trace = routes.draw(8000, seed=1)
    zipf = 1 / np.arange(1, 9)
    for part in (trace[:4000], trace[4000:]):
        assert -np.sort(-frequencies(part, 8)) == pytest.approx(np.tile(zipf / zipf.sum(), (2, 1)), abs=0.03)
    before, after = (frequencies(part, 8).argmax(axis=1) for part in (trace[:4000], trace[4000:]))
    assert (before != after).all()
    distinct = Drifting(experts=6, top_k=4).draw(50, seed=0)
    assert all(len({*token}) == 4 for layers in distinct.tolist() for token in layers)
    assert np.array_equal(routes.draw(8000, seed=1), trace)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_traces_side_by_side_are_replayed_as_each_alone(scope: Scope) -> None:
    apart = [random_trace(seed, layers=3) for seed in (1, 2)]
    both, start = np.concatenate(apart, axis=1), first(3, 6, 2)
    cachings, usage = [Caching("lru", scope), Caching("lfru", scope, 4.0)], frequencies(apart[0], 6)
    found = replay(both, cachings, np.tile(start, (1, 2, 1)), np.tile(usage, (2, 1)), traces=2)
    best = replay_best(both, [2], 6, scope, traces=2)
    for trace, part, bound in zip(apart, np.split(found, 2, axis=3), np.split(best, 2, axis=2), strict=True):
        assert np.array_equal(part, replay(trace, cachings, start, usage))
        assert np.array_equal(bound, replay_best(trace, [2], 6, scope))
