"""Enumeration and Pareto frontier against brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.frontier import (
    enumerate_configurations,
    pareto,
    predict_anchors,
    resident_quantized,
    sweep,
    undominated,
    with_perplexity,
)
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.placement import PaperRules

MIXTRAL, A100, WORKLOAD = read_shape("mixtral-8x7b"), read_hardware("a100-80gb"), Workload()
MEMORY = MIXTRAL.memory([4], 64, 1)
TABLE = with_perplexity(enumerate_configurations(CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY), None)


def test_every_pair_of_counts_stands_once_per_placement():
    assert len(TABLE) == 3 * 257 * 257
    assert not TABLE.duplicated(["placement", "quantized_experts", "resident_experts"]).any()
    spilled = TABLE["resident_experts"] - TABLE["resident_quantized_experts"] > 256 - TABLE["quantized_experts"]
    assert not spilled.any()
    assert (TABLE["resident_quantized_experts"] <= TABLE["quantized_experts"]).all()


@pytest.mark.parametrize("budget", [26_280_000_000, 41_760_000_000, 53_030_000_000])
@pytest.mark.parametrize("count", [0, 100, 256])
def test_a_row_says_what_the_plan_of_the_same_counts_does(budget, count):
    plan = PaperRules(MEMORY, MIXTRAL.plan_shape, np.arange(256)).quality(budget, count)
    row = TABLE[
        (TABLE["placement"] == "quantized-first")
        & (TABLE["quantized_experts"] == count)
        & (TABLE["resident_experts"] == plan.resident_experts)
    ].iloc[0]
    assert row["bytes_fast"] == MEMORY.fast(plan)
    expected = CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD).predict(plan).tokens_per_s
    assert row["predicted_tokens_per_s"] == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_undominated_is_what_brute_force_finds(points):
    gain, price = np.array(points).T
    better = (
        (gain[None] >= gain[:, None])
        & (price[None] <= price[:, None])
        & ((gain[None] > gain[:, None]) | (price[None] < price[:, None]))
    )
    assert undominated(gain, price).tolist() == (~better.any(axis=1)).tolist()


def test_the_frontier_trades_quality_for_speed_within_the_budget():
    best = pareto(TABLE, [27_680_000_000, 53_030_000_000])
    for budget, part in best.groupby("budget_bytes"):
        assert (part["bytes_fast"] <= budget).all()
        ordered = part.sort_values("quantized_experts")
        assert ordered["quantized_experts"].is_unique
        assert (np.diff(ordered["predicted_tokens_per_s"]) > 0).all()
        assert ordered["quantized_experts"].iloc[0] == 0  # best quality is always offered
    assert best["predicted_tokens_per_s"].max() == pytest.approx(13.0)


def test_the_frontier_contains_both_preferences_of_the_paper():
    budgets = [27_680_000_000, 36_130_000_000, 53_030_000_000]
    best = pareto(TABLE, budgets)
    planned = sweep(CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY, budgets, [0, 64, 128])
    for row in planned.itertuples():
        assert row.bytes_fast <= row.budget_bytes
        on = best[(best["budget_bytes"] == row.budget_bytes) & (best["quantized_experts"] == row.quantized_experts)]
        assert on["predicted_tokens_per_s"].iloc[0] >= row.predicted_tokens_per_s * (1 - 1e-9)


def test_perplexity_is_interpolated_between_measured_counts_and_says_so():
    measured = pd.DataFrame(
        {
            "corpus": ["a", "b"] * 2,
            "bits": 4,
            "quantized_experts": [0, 0, 256, 256],
            "perplexity": [2.0, 8.0, 4.0, 16.0],
        }
    )
    rows = with_perplexity(TABLE, measured).groupby("quantized_experts")[["perplexity", "perplexity_basis"]].first()
    assert rows["perplexity"][[0, 128, 256]].tolist() == pytest.approx([4.0, 4.0 * 2**0.5, 8.0])
    assert rows["perplexity_basis"][[0, 128, 256]].tolist() == ["measured", "interpolated", "measured"]
    assert TABLE["perplexity"].isna().all()


def test_perplexities_of_chosen_experts_do_not_mix_with_those_of_random_ones():
    measured = pd.DataFrame({"corpus": "a", "bits": 4, "quantized_experts": [0, 256], "perplexity": [2.0, 3.0]})
    chosen = measured.assign(policy="mixed", perplexity=[9.0, 9.0])
    rows = with_perplexity(TABLE, pd.concat([measured.assign(policy="random"), chosen]))
    assert rows["perplexity"].max() == pytest.approx(3.0)


def test_perplexity_beyond_the_measured_counts_stays_empty():
    measured = pd.DataFrame({"corpus": "a", "bits": 4, "quantized_experts": [0, 128], "perplexity": [2.0, 3.0]})
    rows = with_perplexity(TABLE, measured)
    beyond = rows[rows["quantized_experts"] > 128]
    assert beyond["perplexity"].isna().all()
    assert (beyond["perplexity_basis"] == "").all()


def test_full_first_keeps_experts_at_16_bits_near_while_there_are_any():
    assert resident_quantized("full-first", [3, 3, 3, 0], [2, 8, 10, 4], 10).tolist() == [0, 1, 3, 0]


def test_a_configuration_of_just_the_budget_fits_and_rows_are_numbered_through():
    budget = int(TABLE["bytes_fast"].median())
    exact = TABLE[TABLE["bytes_fast"] == TABLE["bytes_fast"].min()]["bytes_fast"].iloc[0]
    found = pareto(TABLE, [int(exact), budget])
    assert (found["budget_bytes"] == exact).any()
    assert found.index.tolist() == list(range(len(found)))


def test_sweep_and_anchors_give_the_plan_of_each_preference():
    budget = 53_030_000_000
    rows = sweep(CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY, [budget], [0, 128])
    assert rows["preference"].tolist() == ["throughput", "quality", "quality"]
    fast = PaperRules(MEMORY, MIXTRAL.plan_shape, np.arange(256)).throughput(budget)
    assert rows["quantized_experts"].tolist() == [fast.quantized_experts, 0, 128]
    assert (rows["bytes_fast"] <= budget).all()
    published = pd.DataFrame(
        {
            "hardware": [A100.name] * 2,
            "budget_bytes": [budget] * 2,
            "preference": ["throughput", "quality"],
            "quantized_experts": [7, 128],
            "published_tokens_per_s": [2.0, 0.5],
        }
    )
    anchors = predict_anchors(published, CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY)
    assert anchors["quantized_experts"].tolist() == [fast.quantized_experts, 128]
    predicted = rows["predicted_tokens_per_s"].iloc[[0, 2]].to_numpy()
    assert anchors["predicted_tokens_per_s"].to_numpy() == pytest.approx(predicted, rel=1e-12)
    assert anchors["relative_error"].to_numpy() == pytest.approx(predicted / [2.0, 0.5] - 1, rel=1e-12)


def test_everything_near_and_nothing_quantised_decodes_at_the_speed_of_the_paper():
    # 13 tokens/s is what the profile's time of computation was fitted to; nothing is read.
    assert TABLE.index.tolist() == list(range(len(TABLE)))
    whole = TABLE[(TABLE["quantized_experts"] == 0) & (TABLE["resident_experts"] == 256)]
    assert len(whole) == 3
    assert whole["predicted_decode_tokens_per_s"].to_numpy() == pytest.approx([13.0] * 3)
    # A look-up of nothing that is near: 64 reads of 27.35 ms beside it.
    bare = TABLE[(TABLE["quantized_experts"] == 0) & (TABLE["resident_experts"] == 0)]
    assert bare["predicted_decode_tokens_per_s"].to_numpy() == pytest.approx([1 / (64 * 0.02735 + 1 / 13)] * 3)
