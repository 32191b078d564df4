"""Plans: what the two preferences of the paper choose, and what every plan must satisfy."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.budget import parse_budget
from lumoe.moe.planning.placement import PaperRules, fill, place, quantize_first, random_order
from lumoe.moe.planning.plan import Memory, Plan, parse_preference

SHAPE = (3, 4)
MEMORY = Memory(expert={4: 30, 16: 100}, non_expert=50, buffer=100)
budgets = st.integers(150, 1400)
counts = st.integers(0, 12)


def test_throughput_plan_is_the_papers_formula():
    # floor((1000 − 50 − 12·30) / (100 − 30)) = floor(590 / 70) = 8 experts keep 16 bits, all are resident
    plan = PaperRules(MEMORY, SHAPE, np.arange(12)).throughput(1000)
    assert plan.quantized_experts == 4
    assert plan.resident.all()
    assert MEMORY.fast(plan) == 50 + 4 * 30 + 8 * 100


def test_throughput_plan_offloads_when_all_4_bit_experts_do_not_fit():
    # 50 + 360 > 400: all 4 bits; (400 − 50 − 100) / 30 = 8.3 resident beside the buffer
    plan = PaperRules(MEMORY, SHAPE, np.arange(12)).throughput(400)
    assert plan.quantized.all()
    assert plan.resident_experts == 8


def test_quality_plan_places_4_bit_experts_first():
    # 600 − 50 − 100 = 450: six of 30, then two of 100
    plan = PaperRules(MEMORY, SHAPE, np.arange(12)).quality(600, 6)
    assert plan.resident[plan.quantized].all()
    assert (plan.resident & ~plan.quantized).sum() == 2


def test_mixtral_at_the_papers_lower_point_holds_68_experts_beside_a_buffer_and_69_without():
    shape = read_shape("mixtral-8x7b")
    for buffer, resident in ((1, 68), (0, 69)):
        plan = PaperRules(shape.memory([4], 64, buffer), shape.plan_shape, np.arange(256)).quality(27_680_000_000, 0)
        assert plan.resident_experts == resident


@given(budget=budgets, seed=st.integers(0, 99), count=counts, preference=st.sampled_from(["throughput", "quality"]))
def test_no_plan_exceeds_its_budget_and_none_wastes_room_for_an_expert(budget, seed, count, preference):
    order = random_order(*SHAPE, seed)
    if preference == "throughput":
        plan = PaperRules(MEMORY, SHAPE, order).throughput(budget)
    else:
        plan = PaperRules(MEMORY, SHAPE, order).quality(budget, count)
        assert plan.quantized_experts == count
    assert MEMORY.fast(plan) <= budget
    left_out = plan.expert_bytes(MEMORY.expert)[~plan.resident]
    if left_out.size:
        assert MEMORY.fast(plan) + left_out.min() > budget


@given(seed=st.integers(0, 99), few=counts, many=counts)
def test_a_larger_count_of_one_order_contains_the_smaller(seed, few, many):
    few, many = sorted((few, many))
    order = random_order(*SHAPE, seed)
    small, large = (quantize_first(order, count, SHAPE) < 16 for count in (few, many))
    assert (large[small]).all()
    assert large.sum() == many


@given(budget=budgets)
def test_residents_are_spread_over_layers(budget):
    resident = fill(np.full(SHAPE, 16), budget, MEMORY.expert)
    per_layer = resident.sum(axis=1)
    assert per_layer.max() - per_layer.min() <= 1


def test_priority_decides_within_a_precision():
    wanted = np.arange(12).reshape(SHAPE)
    resident = fill(np.full(SHAPE, 16), 300, MEMORY.expert, wanted)
    assert wanted[resident].tolist() == [9, 10, 11]


def test_full_residency_needs_no_buffer():
    bits = np.full(SHAPE, 16)
    assert place(bits, 50 + 1200, MEMORY).resident.all()
    assert place(bits, 50 + 1199, MEMORY).resident_experts == 10  # eleven would fit, but the buffer takes one place


def test_a_plan_survives_json():
    plan = PaperRules(MEMORY, SHAPE, random_order(*SHAPE, 5)).quality(600, 7)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_cannot_be_changed():
    plan = Plan.uniform(2, 2)
    with pytest.raises(ValueError, match="read-only"):
        plan.bits[0, 0] = 4


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: Plan(np.full((2, 2), 5), np.ones((2, 2), dtype=bool)), "5 bits"),
        (lambda: Plan(np.full((2, 2), 16), np.ones((2, 3), dtype=bool)), "layers, experts"),
        (lambda: Plan.from_dict({"bits": [[16]]}), "resident"),
        (lambda: Plan.from_dict({"bits": [[16], [16, 4]], "resident": [[True]]}), "arrays"),
        (lambda: quantize_first(np.arange(4), 5, (2, 2)), "5 experts"),
        (lambda: PaperRules(MEMORY, SHAPE, np.arange(12)).throughput(149), "at least 150"),
        (lambda: Plan.uniform(1, 1, 8).expert_bytes({16: 1}), "8 bits"),
        (lambda: parse_budget("24XB"), "24XB"),
        (lambda: parse_budget("30%"), "30%"),
        (lambda: parse_budget("0GB"), "above 0"),
        (lambda: parse_budget("GB"), "GB"),
        (lambda: parse_budget("1e400GB"), "below 2"),
        (lambda: parse_budget("0.4"), "above 0"),
    ],
)
def test_mistakes_are_named(action, message):
    with pytest.raises(UserError, match=message):
        action()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GB", 24_000_000_000),
        ("1.5 gib", 1_610_612_736),
        ("100", 100),
        (".5kB", 500),
        ("25%", 250),
        ("2MiB", 2**21),
        ("24G", 24 * 10**9),
        ("24e9", 24 * 10**9),
        ("24Gi", 24 * 2**30),
        ("1.5e0 k", 1500),
        ("512M", 512 * 10**6),
    ],
)
def test_budgets_as_people_write_them(text, expected):
    assert parse_budget(text, whole=1000) == expected


def test_all_experts_at_4_bits_fit_exactly_or_one_goes():
    exact = MEMORY.non_expert + 12 * MEMORY.expert[4]
    assert PaperRules(MEMORY, SHAPE, np.arange(12)).throughput(exact).resident.all()
    assert PaperRules(MEMORY, SHAPE, np.arange(12)).throughput(exact - 1).resident_experts < 12


@pytest.mark.parametrize(
    "value",
    [
        {"bits": [[4.5]], "resident": [[True]]},
        {"bits": [[4]], "resident": [["false"]]},
        {"bits": [[4]], "resident": [[1]]},
        {"bits": [["4"]], "resident": [[True]]},
        {"bits": [[10**30]], "resident": [[True]]},
    ],
)
def test_a_plan_of_other_values_is_not_rounded_into_one(value):
    with pytest.raises(UserError, match="must be"):
        Plan.from_dict(value)


def test_the_first_unknown_precision_is_named_and_each_known_one_is_taken():
    with pytest.raises(UserError, match=r"plan: 5 bits .* known: 2, 3, 4, 8, 16"):
        Plan.uniform(1, 1, 5)
    with pytest.raises(UserError, match="plan: 5 bits"):
        Plan(np.array([[5, 7]]), np.ones((1, 2), dtype=bool))
    for bits in (2, 3, 4, 8, 16):
        assert Plan.uniform(1, 1, bits).bits.item() == bits


def test_a_preference_is_one_of_two_names():
    assert [parse_preference(name) for name in ("throughput", "quality")] == ["throughput", "quality"]
    with pytest.raises(UserError, match=r"preference 'quallity' is unknown.*'quality'"):
        parse_preference("quallity")


def test_plans_are_equal_when_precision_and_place_are():
    plan = Plan(np.array([[16, 4]]), np.array([[True, False]]))
    assert plan == Plan(np.array([[16, 4]]), np.array([[True, False]]))
    assert hash(plan) == hash(Plan(np.array([[16, 4]]), np.array([[True, False]])))
    assert plan != Plan(np.array([[16, 8]]), np.array([[True, False]]))
    assert plan != Plan(np.array([[16, 4]]), np.array([[True, True]]))
    assert plan != "plan"


def test_shape_is_layers_and_experts():
    assert Plan.uniform(3, 5).shape == (3, 5)


def test_a_uniform_plan_is_full_and_resident_unless_told():
    assert Plan.uniform(2, 3).to_dict() == {"bits": [[16] * 3] * 2, "resident": [[True] * 3] * 2}
    assert Plan.uniform(1, 2, 8, False).to_dict() == {"bits": [[8, 8]], "resident": [[False, False]]}


def test_plans_and_memories_are_not_assigned_to():
    plan = Plan.uniform(1, 1)
    for value, name in ((plan, "bits"), (MEMORY, "buffer")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_a_memory_has_no_buffer_unless_told():
    # 20 outside the experts and one expert of 100
    assert Memory({16: 100}, 20).fast(Plan(np.array([[16, 16]]), np.array([[True, False]]))) == 120


def test_experts_give_up_precision_in_the_given_order():
    assert quantize_first([3, 0, 1, 2], 2, (2, 2)).tolist() == [[4, 16], [16, 4]]
    assert quantize_first([3, 0, 1, 2], 0, (2, 2), 2).tolist() == [[16, 16], [16, 16]]
    assert quantize_first([3, 0, 1, 2], 4, (2, 2), 2).tolist() == [[2, 2], [2, 2]]
    with pytest.raises(UserError, match="plan: -1 experts cannot be quantised, the model has 4"):
        quantize_first([3, 0, 1, 2], -1, (2, 2))


def test_bytes_of_each_expert_and_the_first_precision_that_has_none():
    plan = Plan(np.array([[16, 4], [8, 16]]), np.array([[True, False], [True, True]]))
    sizes = {4: 3, 8: 7, 16: 11}
    assert plan.expert_bytes(sizes).tolist() == [[11, 3], [7, 11]]
    assert plan.bytes_resident(sizes) == 29
    with pytest.raises(UserError, match="plan: no weights at 4 bits; there are 2, 16"):
        plan.expert_bytes({16: 11, 2: 1})


@pytest.mark.parametrize("small", [100, 101])
def test_precisions_that_save_nothing_are_refused(small):
    memory = Memory({8: small, 16: 100}, 0)
    with pytest.raises(UserError, match=f"at 8 bits takes {small} bytes, at 16 bits 100"):
        PaperRules(memory, (1, 4), np.arange(4), bits=8).throughput(250)
