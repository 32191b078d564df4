"""What a comparison of policies counts, what is guessed, and that the store hits as a replay says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_machine import BYTES, SMALL, machine

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.replay import frequencies, replay, replay_fixed
from lumoe.moe.measurement.residency import (
    COLUMNS,
    HALF_LIVES,
    Costs,
    Held,
    Learned,
    Transitions,
    Trial,
    compare,
    record_trace,
    record_with_guesses,
    synthetic,
)
from lumoe.moe.measurement.synthetic_routes import COARSE, FINE, Drifting
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.caching_choice import hit_rates
from lumoe.moe.planning.cost import CostModel
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.calibration import walk

COSTS = Costs(16, 40)


def random_trace(seed: int, tokens: int = 50, layers: int = 2, experts: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([[generator.permutation(experts)[:2] for _ in range(layers)] for _ in range(tokens)])


def learned_on(trace: np.ndarray, experts: int, slots: range) -> Learned:
    return Learned.learn(frequencies(trace, experts), Trial.run(Held("c", trace), experts, slots, 10))


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_no_fixed_choice_beats_the_best_one_and_nothing_the_optimum(seed: int) -> None:
    learned = learned_on(random_trace(seed + 1), 6, range(7))
    table = compare([Held("t", random_trace(seed))], learned, range(7), [0, 1], COSTS)
    assert list(table.columns) == list(COLUMNS)
    assert (table["regret"].dropna() >= 0).all()
    layer = table[table["scope"] == "layer"]
    rates = layer.pivot_table(index="resident_share", columns="policy", values="hit_rate", aggfunc="max")
    assert (rates["oracle"] >= rates[["random", "frequency"]].max(axis=1)).all()
    assert (rates.loc[0.0] == 0).all()
    assert (rates.loc[1.0] == 1).all()
    assert rates["oracle"].is_monotonic_increasing
    misses = table["lookups"] * (1 - table["hit_rate"])
    assert np.allclose(table["experts_read"] * table["tokens"], misses)
    assert np.allclose(table["bytes_read"], 40 * table["experts_read"])


def test_regret_is_relative_to_the_optimum_of_the_same_scope() -> None:
    table = compare([Held("t", random_trace(3))], learned_on(random_trace(4), 6, range(1, 6)), range(1, 6), [0], COSTS)
    for _, rows in table.groupby(["scope", "resident_share"]):
        best = 1 - rows.loc[rows["policy"] == "belady", "hit_rate"].item()
        assert np.allclose(rows["regret"], (1 - rows["hit_rate"]) / best - 1)


def traffic(trace: np.ndarray, guesses: np.ndarray, most: int) -> pd.DataFrame:
    held = Held("t", trace, {"router": guesses})
    table = compare([held], learned_on(random_trace(9), 6, range(1, 4)), range(1, 4), [0], COSTS, [most])
    return table.set_index(["policy", "scope", "resident_share"])


def test_perfect_guesses_make_everything_ready_and_cost_no_read_more() -> None:
    trace = random_trace(0)
    table = traffic(trace, trace, 2)
    plain, guessed = table[table["guesses"] == "none"], table[table["guesses"] == "router"]
    assert (guessed["ready_rate"] == 1).all()
    assert (plain["ready_rate"] == plain["hit_rate"]).all()
    assert np.allclose(guessed["experts_read"], plain.loc[guessed.index, "experts_read"])
    assert np.allclose(guessed["hit_rate"], plain.loc[guessed.index, "hit_rate"])


def test_wrong_guesses_cost_a_read_unless_they_are_resident() -> None:
    trace = random_trace(0)
    # For each look-up the first two experts that it does not want; nothing is guessed for the first layer.
    wrong = np.array([[[e for e in range(6) if e not in chosen][:2] for chosen in token] for token in trace.tolist()])
    wrong[:, 0] = -1
    table = traffic(trace, wrong, 2)
    plain, guessed = table[table["guesses"] == "none"], table[table["guesses"] == "router"]
    assert (guessed["ready_rate"] == guessed["hit_rate"]).all()
    held = frequencies(random_trace(9), 6)
    for count in range(1, 4):
        resident = np.zeros((2, 6), dtype=bool)
        np.put_along_axis(resident, np.argsort(-held, axis=1, kind="stable")[:, :count], True, axis=1)
        more = (~resident[1][wrong[:, 1]]).sum() / len(trace)
        where = ("frequency", "layer", count / 6)
        assert guessed.loc[where, "experts_read"] == pytest.approx(plain.loc[where, "experts_read"] + more)


def test_transitions_guess_what_came_after() -> None:
    # Expert 0 of the first layer is always followed by 2 and 1, expert 3 by 0 and 1.
    trace = np.array([[[0], [2]], [[0], [2]], [[0], [1]], [[3], [0]]])
    learned = Transitions.learn(trace, 4)
    assert learned.guess(np.array([[[0], [3]], [[3], [3]]]), 2).tolist() == [[[-1, -1], [2, 1]], [[-1, -1], [0, 1]]]


def test_half_lives_are_those_of_calibration_text_alone() -> None:
    calibration, held_out = random_trace(5, tokens=200), random_trace(6)
    trial = Trial.run(Held("c", calibration), 6, range(1, 4), 10)
    learned = Learned.learn(frequencies(calibration, 6), trial)
    for count in range(1, 4):
        rates = [trial.rates[Caching("lfru", "model", life)].hits[count - 1].mean() for life in HALF_LIVES]
        assert learned.half_life("model", count) == HALF_LIVES[int(np.argmax(rates))]
    table = compare([Held("t", held_out)], learned, range(1, 4), [0], COSTS)
    used = table[table["policy"] == "lfru"].set_index(["scope", "resident_share"])["half_life"]
    assert len(used) == 6
    assert all(life == learned.half_life(scope, round(6 * share)) for (scope, share), life in used.items())
    assert table.loc[table["policy"] != "lfru", "half_life"].isna().all()


def test_a_trial_learns_from_one_half_and_replays_the_other() -> None:
    # Sequences of two tokens: the even ones want expert 0, the odd ones expert 1.
    trace = np.array([[[expert]] for expert in (0, 0, 1, 1) * 5])
    trial = Trial.run(Held("c", trace), 3, [1], 2)
    assert trial.rates[Caching("static")].hits.tolist() == [[0.0]]
    assert trial.rates[Caching("lru")].hits.tolist() == [[0.9]]
    read = hit_rates(trial.table())
    assert read.at(Caching("lru"), 1 / 3).hits.tolist() == [0.9]
    with pytest.raises(UserError, match="not two sequences"):
        Trial.run(Held("c", trace), 3, [1], 20)


def test_modelled_speed_adds_up_each_miss() -> None:
    # All miss at no places: 2 layers of 2 experts, each 1 s and 5 s of reading (1 s and 40 bytes at 10/s), dense 1 s.
    costs = Costs(16, 40, CostModel(machine(), SMALL, BYTES))
    trace = random_trace(0, experts=4)
    table = compare([Held("t", trace)], learned_on(random_trace(1, experts=4), 4, range(5)), range(5), [0], costs)
    speed = table[table["policy"] == "lfru"].set_index(["scope", "resident_share"])["modelled_tokens_per_s"]
    assert speed["layer", 0.0] == pytest.approx(1 / (1 + 4 * 1 + 4 * 5))
    assert speed["layer", 1.0] == pytest.approx(1 / (1 + 4 * 1))


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("routes", [COARSE, FINE], ids=["coarse", "fine"])
def test_speeds_are_predicted_by_hit_rates_of_calibration_text(routes: Drifting, overlapped: bool) -> None:
    shape = SMALL.model_copy(
        update={
            "num_hidden_layers": routes.layers,
            "num_local_experts": routes.experts,
            "num_experts_per_tok": routes.top_k,
        }
    )
    costs = Costs(16, 40, CostModel(machine(overlapped), shape, BYTES))
    errors = []
    slots = [routes.experts * share // 16 for share in (1, 2, 4, 6, 8) if routes.experts * share >= 16]
    for seed in range(2):
        trace = routes.draw(1000, seed)
        trial = Trial.run(Held("c", trace[:500]), routes.experts, slots, routes.period // 2)
        learned = Learned.learn(frequencies(trace[:500], routes.experts), trial)
        table = compare([Held("t", trace[500:])], learned, slots, [0], costs)
        table = table[table["policy"].isin(["lru", "lfru"])]
        errors += (table["predicted_tokens_per_s"] / table["modelled_tokens_per_s"] - 1).abs().tolist()
    assert len(errors) == 2 * 2 * 2 * len(slots)
    assert np.median(errors) <= 0.15
    assert max(errors) <= 0.4


def test_synthetic_routing_is_compared_from_half_a_tokens_experts_to_half_of_the_layer() -> None:
    coarse, fine = synthetic(300, [0], COSTS)
    assert coarse["resident_share"].agg(["min", "max"]).tolist() == [1 / 8, 1 / 2]
    assert fine["resident_share"].agg(["min", "max"]).tolist() == [4 / 64, 1 / 2]
    assert coarse["modelled_tokens_per_s"].isna().all()


def test_the_next_router_guesses_on_this_layers_hidden_states(model_f32: Path) -> None:
    sequences = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    engine = Engine.load(model_f32, dtype=torch.float32)
    before = [layer.router for layer in engine.decoder.moe_layers]  # type: ignore[attr-defined]
    trace, guesses = record_with_guesses(engine, sequences, 3)
    assert [layer.router for layer in engine.decoder.moe_layers] == before  # type: ignore[attr-defined]
    assert np.array_equal(trace, record_trace(engine, sequences))
    assert (guesses[:, 0] == -1).all()
    # The layers' inputs as calibration sees them, by another path through the model.
    inputs = list(walk(Checkpoint(model_f32), sequences))
    for layer, (here, following) in enumerate(pairwise(inputs), start=1):
        logits = here.hidden @ following.layer.router.gate.float().T
        assert (guesses[:, layer] == logits.topk(3).indices.numpy()).mean() > 0.95
    with pytest.raises(UserError, match="prefetch"):
        record_with_guesses(engine, sequences, 5)


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
        fixed = policy == "static"
        found = replay_fixed(trace, plan.resident) if fixed else replay(trace, [Caching("lru")], plan.resident[None])
        assert engine.metrics()["hits"] == found.sum()


def test_bad_slots() -> None:
    learned = learned_on(random_trace(0), 6, range(7))
    with pytest.raises(UserError, match="6 experts"):
        compare([Held("t", random_trace(0))], learned, [7], [0], COSTS)
