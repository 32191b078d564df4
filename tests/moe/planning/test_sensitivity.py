"""Which experts to quantise: divergences, the knapsack against brute force, and policies that spend equal bytes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.evaluation.divergence import measure_costs
from lumoe.moe.evaluation.perplexity import rolling_windows
from lumoe.moe.planning.plan import Plan
from lumoe.moe.planning.policy import plans_of
from lumoe.moe.planning.sensitivity import cheapest_first, choose_bits, cost_table

BYTES = {4: 5, 8: 9, 16: 16}


class Shifted:
    """A model whose logits a quantised expert shifts by a known amount."""

    def __init__(self) -> None:
        self.shift = torch.zeros(3)

    def reconfigure(self, plan: Plan) -> None:
        weight = float(((16 - plan.bits) * np.arange(1, 5).reshape(2, 2)).sum()) / 24
        self.shift = weight * torch.tensor([1.0, 0.0, -1.0])

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.3, 0.2, 0.1]).expand(len(tokens), 3) + self.shift


def test_a_cost_is_the_divergence_of_that_expert_alone():
    model = Shifted()
    costs = measure_costs(model, rolling_windows([0, 1, 2, 0], 0, 2), (2, 2), [4, 8])
    for row in costs.itertuples():
        model.shift = (16 - row.bits) * (2 * row.layer + row.expert + 1) / 24 * torch.tensor([1.0, 0.0, -1.0])
        before = torch.distributions.Categorical(logits=torch.tensor([0.3, 0.2, 0.1]))
        after = torch.distributions.Categorical(logits=model.logits(torch.zeros(1))[0])
        assert row.divergence == pytest.approx(float(torch.distributions.kl_divergence(before, after)), rel=1e-4)


def test_a_divergence_of_nothing_is_nothing():
    model = Shifted()
    costs = measure_costs(model, rolling_windows([0, 1], 0, 2), (2, 2), [16])
    assert (costs["divergence"] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=4, max_size=4),
    budget=st.integers(20, 64),
)
def test_the_choice_is_the_best_of_all(costs, budget):
    at_4, more = np.array(costs, dtype=float).T
    table = {16: np.zeros((2, 2)), 8: at_4.reshape(2, 2), 4: (at_4 + more).reshape(2, 2)}
    choice = choose_bits(table, BYTES, budget, gap=0)
    assert sum(BYTES[bits] for bits in choice.bits.ravel().tolist()) <= budget
    best = min(
        sum(table[bits].ravel()[index] for index, bits in enumerate(chosen))
        for chosen in product((4, 8, 16), repeat=4)
        if sum(BYTES[bits] for bits in chosen) <= budget
    )
    assert choice.cost == pytest.approx(best, abs=1e-6)
    assert choice.bound <= choice.cost + 1e-6


def test_tiny_costs_are_not_lost_in_the_solvers_tolerances():
    table = {16: np.zeros((1, 4)), 4: np.array([[4e-9, 1e-9, 3e-9, 2e-9]])}
    choice = choose_bits(table, BYTES, 2 * 5 + 2 * 16)
    assert choice.bits.tolist() == [[16, 4, 16, 4]]
    assert choice.gap <= 1e-4


def test_a_mixtral_sized_choice_has_a_proven_gap():
    at_4 = np.random.default_rng(0).lognormal(-8, 1.5, (32, 8))
    table = {16: np.zeros((32, 8)), 8: at_4 / 200, 4: at_4, 3: at_4 * 6, 2: at_4 * 40}
    sizes = {2: 25, 3: 35, 4: 45, 8: 85, 16: 160}
    choice = choose_bits(table, sizes, 256 * 60)
    assert choice.gap < 1e-3
    assert sum(sizes[bits] for bits in choice.bits.ravel().tolist()) <= 256 * 60


def test_the_cheapest_go_first():
    assert cheapest_first([[0.3, 0.1], [0.2, 0.1]]).tolist() == [1, 3, 2, 0]


def rows_of(bits: int, values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": [0, 0, 1, 1], "expert": [0, 1, 0, 1], "bits": bits, "divergence": values, "tokens": 10}
    )


COSTS = pd.concat([rows_of(4, [4.0, 1.0, 3.0, 2.0]), rows_of(8, [0.4, 0.1, 0.3, 0.2])])


@pytest.mark.parametrize("policy", ["random", "sensitivity", "mixed"])
def test_policies_spend_equal_bytes(policy):
    for count, plan in enumerate(plans_of(policy, (2, 2), range(5), 4, BYTES, seed=1, costs=COSTS)):
        spent = plan.expert_bytes(BYTES).sum()
        allowed = count * BYTES[4] + (4 - count) * BYTES[16]
        assert spent <= allowed
        if policy != "mixed":
            assert spent == allowed
            assert plan.quantized_experts == count


def test_sensitivity_quantises_the_least_sensitive_and_mixing_costs_no_more():
    sensitive, mixed = (plans_of(policy, (2, 2), [2], 4, BYTES, costs=COSTS)[0] for policy in ("sensitivity", "mixed"))
    assert sensitive.bits.tolist() == [[16, 4], [16, 4]]
    table = cost_table(COSTS, (2, 2))
    cost = [sum(table[b][plan.bits == b].sum() for b in BYTES) for plan in (sensitive, mixed)]
    assert cost[1] < cost[0]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: plans_of("sensitve", (2, 2), [1], 4, BYTES), "did you mean 'sensitivity'"),
        (lambda: plans_of("mixed", (2, 2), [1], 4, BYTES), "lumoe moe sensitivity"),
        (lambda: plans_of("sensitivity", (2, 2), [1], 3, BYTES, costs=COSTS), "3 bits"),
        (lambda: cost_table(COSTS, (1, 2)), "lacks"),
        (lambda: cost_table(COSTS, (2, 3)), "layer 0 expert 2"),
        (lambda: choose_bits({4: np.ones((1, 2)), 16: np.zeros((1, 2))}, BYTES, 9), "9 bytes"),
    ],
)
def test_mistakes_are_named(action, message):
    with pytest.raises(UserError, match=message):
        action()
