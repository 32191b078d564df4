"""The cost model against the paper's numbers, a simulation of routing, and its own limits."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_machine import BYTES, SMALL, machine, times, times_of

from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.cost import (
    CostModel,
    Workload,
    expert_seconds,
    seconds_at,
    transfer_seconds,
    uniform_frequencies,
    usage,
)
from lumoe.moe.planning.frontier import predict_anchors
from lumoe.moe.planning.hardware import Seconds, read_hardware
from lumoe.moe.planning.placement import PaperRules
from lumoe.moe.planning.plan import Plan
from lumoe.resources import data_path

MIXTRAL, A100 = read_shape("mixtral-8x7b"), read_hardware("a100-80gb")


def test_the_lower_claim_is_predicted_within_5_percent():
    anchors = predict_anchors(
        read_csv(data_path("moe-anchors.csv")),
        CostModel(A100, MIXTRAL, MIXTRAL.memory([4], 64, 1).expert, Workload()),
        MIXTRAL.memory([4], 64, 1),
    ).set_index("anchor")
    assert anchors.loc["lowest", "predicted_tokens_per_s"] == pytest.approx(0.63, rel=0.05)
    # The constant is fitted to this one: it has to come out, and says nothing.
    assert anchors.loc["highest", "predicted_tokens_per_s"] == pytest.approx(13.0, rel=1e-6)
    assert anchors.loc["highest", "basis"] == "fitted"


def test_the_lower_claim_by_hand():
    # 69 of 256 resident: 64 look-ups a step, 27.35 ms a miss, 1/13 s of computation; prefill of 16 tokens touches
    # 8·(1 − 0.75¹⁶) experts in each of 32 layers.
    plan = PaperRules(MIXTRAL.memory([4], 64, 0), MIXTRAL.plan_shape, np.arange(256)).quality(27_680_000_000, 0)
    miss = (1 - 69 / 256) * 0.02735
    prefill = 32 * 8 * (1 - 0.75**16) * miss + 1 / 13
    total = prefill + 15 * (64 * miss + 1 / 13)
    prediction = CostModel(A100, MIXTRAL, MIXTRAL.memory([4], 64).expert, Workload(16, 16)).predict(plan)
    assert prediction.prefill_s == pytest.approx(prefill, rel=1e-6)
    assert prediction.tokens_per_s == pytest.approx(16 / total, rel=1e-6)


def test_mixtral_weighs_what_its_config_says():
    assert MIXTRAL.bytes_full == 2 * 46_702_792_704
    memory = MIXTRAL.memory([4], 64)
    assert memory.expert[16] == 2 * 3 * 4096 * 14336
    # 4 bits and a 16-bit scale and zero per 64 weights: 4.5 bits
    assert memory.expert[4] == memory.expert[16] * 4.5 / 16


def test_usage_is_what_random_routing_gives():
    generator = np.random.default_rng(0)
    chosen = np.argsort(generator.random((4000, 16, 8)), axis=2)[:, :, :2]  # 4000 times 16 tokens, 2 of 8
    hits = (chosen[..., None] == np.arange(8)).any(axis=2).sum(axis=1)  # tokens per expert
    used, share = usage(0.25, 16)
    assert (hits > 0).mean() == pytest.approx(float(used), rel=0.01)
    assert hits[hits > 0].mean() == pytest.approx(float(share), rel=0.01)


@given(
    resident=st.lists(st.booleans(), min_size=8, max_size=8), quantized=st.lists(st.booleans(), min_size=8, max_size=8)
)
def test_counts_and_plans_agree_under_balanced_routing(resident, quantized):
    plan = Plan(np.where(quantized, 4, 16).reshape(2, 4), np.array(resident).reshape(2, 4))
    held = {bits: (plan.bits == bits).sum() for bits in BYTES}
    fast = {bits: ((plan.bits == bits) & plan.resident).sum() for bits in BYTES}
    for tokens in (1, 16):
        by_plan = CostModel(machine(), SMALL, BYTES).step_seconds(plan, tokens)
        by_count = CostModel(machine(), SMALL, BYTES).count_step_seconds(tokens, held, fast)
        assert by_plan == pytest.approx(float(by_count))


@given(index=st.integers(0, 7), tokens=st.sampled_from([1, 3, 16]), overlapped=st.booleans())
def test_one_more_resident_expert_is_never_slower(index, tokens, overlapped):
    fewer = np.ones(8, dtype=bool)
    fewer[[index, (index + 3) % 8]] = False
    more = fewer.copy()
    more[index] = True
    slow, fast = (
        CostModel(machine(overlapped), SMALL, BYTES).step_seconds(Plan(np.full((2, 4), 16), r.reshape(2, 4)), tokens)
        for r in (fewer, more)
    )
    assert fast <= slow + 1e-12
    assert overlapped or fast < slow  # a read that hides behind computation costs nothing


def test_a_hot_resident_expert_is_worth_more():
    frequencies = np.array([[0.95, 0.35, 0.35, 0.35]] * 2)
    hot = Plan(np.full((2, 4), 16), np.array([[True, False, False, False]] * 2))
    cold = Plan(np.full((2, 4), 16), np.array([[False, False, False, True]] * 2))
    assert CostModel(machine(), SMALL, BYTES, frequencies=frequencies).step_seconds(hot, 1) < CostModel(
        machine(), SMALL, BYTES, frequencies=frequencies
    ).step_seconds(cold, 1)


def test_overlap_hides_computation_behind_reads():
    plan = Plan(np.full((2, 4), 16), np.array([[True, True, False, False]] * 2))
    # decode: two of four experts a layer, one of them missed on average: computation 2 s, reads (1 + 4) s a miss
    assert CostModel(machine(False), SMALL, BYTES).step_seconds(plan, 1) == pytest.approx(1 + 2 * (2 + 5))
    # something is missed with chance 1 − (1/2)²; then reads of 5 / (3/4) s and the last miss's 1 s outlast the 2 s
    assert CostModel(machine(True), SMALL, BYTES).step_seconds(plan, 1) == pytest.approx(
        1 + 2 * (2 + 0.75 * (5 / 0.75 + 1 - 2))
    )


@pytest.mark.parametrize("resident", [0, 2, 6, 8])
@pytest.mark.parametrize("read_s", [0.2, 1.0, 5.0])
def test_overlap_is_what_a_simulation_of_the_reader_gives(resident, read_s):
    # Two of eight experts a token; hits are computed first (1 s each), misses as they are read one after another.
    generator = np.random.default_rng(0)
    times = []
    for _ in range(4000):
        chosen = generator.permutation(8)[:2]
        clock = float((chosen < resident).sum())
        for number in range(int((chosen >= resident).sum())):
            clock = max(clock, (number + 1) * read_s) + 1.0
        times.append(clock)
    shape = SMALL.model_copy(update={"num_hidden_layers": 1, "num_local_experts": 8})
    fields = {"latency_s": read_s, "bytes_per_s": 1e12}
    transfer = {key: {"value": value, "source": "test", "confidence": "assumed"} for key, value in fields.items()}
    hardware = machine(transfer=transfer | {"overlapped": True}, dense=times_of(0.0), expert={16: times_of(1.0)})
    plan = Plan(np.full((1, 8), 16), (np.arange(8) < resident)[None])
    assert CostModel(hardware, shape, BYTES).step_seconds(plan, 1) == pytest.approx(np.mean(times), rel=0.08)


def test_times_are_linear_between_and_beyond_entries():
    profile = Seconds.model_validate(times([1, 4, 16], [1.0, 4.0, 10.0]))
    assert seconds_at(profile, [1, 2.5, 10, 16, 20]) == pytest.approx([1, 2.5, 7, 10, 12])
    assert seconds_at(Seconds.model_validate(times([1], [2.0])), [1, 99]) == pytest.approx([2, 2])


def test_a_transfer_takes_latency_and_bandwidth():
    assert transfer_seconds(machine(), [0, 20]) == pytest.approx([1.0, 3.0])


def test_balanced_frequencies_sum_to_top_k():
    assert uniform_frequencies(MIXTRAL).sum(axis=1) == pytest.approx(np.full(32, 2.0))


def test_a_profile_is_read_from_json_too(tmp_path: Path):
    path = tmp_path / "here.json"
    path.write_text(json.dumps(machine().model_dump(mode="json")))
    assert read_hardware(path) == machine()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: Workload(0, 1), "at least 1"),
        (lambda: read_hardware("a100"), "did you mean 'a100-80gb'"),
        (lambda: read_hardware("absent.yaml"), "no such file"),
        (lambda: read_shape("mixtral"), "mixtral-8x7b"),
        (lambda: expert_seconds(machine(), MIXTRAL, 4, 1), r"\(8, 16\)"),
        (lambda: expert_seconds(machine(), SMALL, 8, 1), "8 bits"),
    ],
)
def test_mistakes_are_named(action, message):
    with pytest.raises(UserError, match=message):
        action()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x"}', "device"),
        ('{"model_type": "llama"}', "Field required|name"),
        ("[1]", "valid dictionary|object"),
    ],
)
def test_a_broken_profile_names_file_and_field(tmp_path: Path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_hardware(path)
    assert str(path) in str(error.value)


def test_only_mixtral_is_taken(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="'llama'"):
        read_shape(tmp_path)


def test_a_workload_of_one_token_is_one_and_the_default_is_16_and_16():
    assert Workload(1, 1) != Workload(1, 2)
    assert (Workload().prompt_tokens, Workload().new_tokens) == (16, 16)
    for prompt, new in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="at least 1"):
            Workload(prompt, new)


def test_a_time_that_would_be_negative_is_nothing():
    falling = Seconds(tokens=[1, 2], seconds=[3.0, 1.0], source="", confidence="assumed")
    assert seconds_at(falling, [1, 2, 4]).tolist() == [3.0, 1.0, 0.0]


def test_an_expert_that_is_never_chosen_is_never_used():
    used, share = usage([0.0, 1.0], 5)
    assert used.tolist() == [0.0, 1.0]
    assert share.tolist() == [1.0, 5.0]


def test_counts_with_overlap_by_hand():
    # Half of the experts near: one of the two that a token uses in a layer is missed on average, as for the plan above.
    near = CostModel(machine(True), SMALL, BYTES).count_step_seconds(1, {16: 8}, {16: 4})
    assert float(near) == pytest.approx(1 + 2 * (2 + 0.75 * (5 / 0.75 + 1 - 2)))


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("resident", [[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
def test_counts_and_plans_agree_with_overlap_where_layers_are_alike(tokens, resident):
    plan = Plan(np.array([[4, 4, 16, 16]] * 2), np.array([resident] * 2, dtype=bool))
    held = {bits: (plan.bits == bits).sum() for bits in BYTES}
    fast = {bits: ((plan.bits == bits) & plan.resident).sum() for bits in BYTES}
    by_count = CostModel(machine(True), SMALL, BYTES).count_step_seconds(tokens, held, fast)
    assert CostModel(machine(True), SMALL, BYTES).step_seconds(plan, tokens) == pytest.approx(float(by_count))


def test_workloads_and_predictions_are_not_assigned_to():
    workload = Workload()
    with pytest.raises(FrozenInstanceError):
        workload.new_tokens = 2
    prediction = CostModel(machine(), SMALL, BYTES, workload).predict(Plan.uniform(2, 4))
    with pytest.raises(FrozenInstanceError):
        prediction.decode_s = 0.0
