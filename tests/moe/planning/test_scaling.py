"""A profile of one model as that of another: what is scaled, what is the machine's, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cost import machine, times_of
from typer.testing import CliRunner

from lumoe.cli.moe.plan import app
from lumoe.errors import UserError
from lumoe.files import write_json
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.plan import Plan
from lumoe.moe.planning.scaling import is_of, scaled

SMALL, LARGE = read_shape("qwen3-30b-a3b"), read_shape("qwen3-235b-a22b")
WIDTHS = {"hidden": SMALL.hidden_size, "intermediate": SMALL.intermediate_size}


def profile(**changes: object) -> Hardware:
    return machine(**{**WIDTHS, "outside": SMALL.outside_parameters_per_token, **changes})


def test_times_go_with_weights_and_the_way_to_the_slow_tier_stays() -> None:
    before, after = profile(), scaled(profile(), LARGE)
    # 4096 x 1536 against 2048 x 768.
    assert after.expert[16].seconds == [4 * value for value in before.expert[16].seconds]
    assert after.expert[4].seconds == [4 * value for value in before.expert[4].seconds]
    # Attention, routers, norms and the head of 94 layers against 48, counted by hand.
    outside = [
        layers * (2 * hidden * 128 * (heads + 4) + 128 * hidden + 2 * hidden + 2 * 128) + hidden + 151936 * hidden
        for layers, hidden, heads in ((48, 2048, 32), (94, 4096, 64))
    ]
    ratio = outside[1] / outside[0]
    assert after.dense.seconds == pytest.approx([ratio * value for value in before.dense.seconds])
    assert (after.transfer, after.fast_bytes, after.name) == (before.transfer, before.fast_bytes, before.name)
    assert is_of(after, LARGE)
    assert not is_of(before, LARGE)


def test_the_profile_of_the_same_model_is_taken_as_it_is() -> None:
    assert scaled(profile(), SMALL) == profile()
    # Profiles of versions before do not say what was outside the experts.
    old = profile(outside=None)
    assert scaled(old, SMALL) is old


def test_a_model_of_the_same_widths_and_half_the_layers_takes_half_the_time() -> None:
    tall = SMALL.model_copy(update={"vocab_size": 1})
    half = tall.model_copy(update={"num_hidden_layers": 24})
    hardware = profile(outside=tall.outside_parameters_per_token)
    speeds = []
    for shape in (tall, half):
        costs = CostModel(scaled(hardware, shape), shape, {16: 40}, Workload())
        speeds.append(costs.predict(Plan.uniform(*shape.plan_shape)).tokens_per_s)
    assert speeds[1] == pytest.approx(2 * speeds[0], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "stored", "message"),
    [
        ({"expert": {}}, "", r"one time for a whole model of widths \(2048, 768\)"),
        ({"outside": None}, "", "does not say how much that model has outside its experts"),
        ({"stored": "Q4_K"}, "", r"computed from codes \(Q4_K\), this model's are 16-bit weights"),
        ({}, "MXFP4", r"computed from 16-bit weights, this model's are codes \(MXFP4\)"),
    ],
)
def test_what_cannot_be_scaled_is_refused(changes: dict[str, object], stored: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaled(profile(**changes), LARGE, stored)


def test_the_command_says_that_the_profile_is_of_another_model(tmp_path: Path) -> None:
    machine_of_small = tmp_path / "results" / "moe" / "other" / "machine.json"
    write_json(machine_of_small, profile().model_dump(mode="json"))
    arguments = ["plan", "--budget", "60%", "--prefer", "throughput", "--hardware", str(machine_of_small), "--model"]
    text = CliRunner().invoke(app, [*arguments, "qwen3-235b-a22b"], catch_exceptions=False).output
    assert "predicted from another model's profile (an expert of 4.72 M weights there, 18.87 M here)" in text
    own = CliRunner().invoke(app, [*arguments, "qwen3-30b-a3b", "--json"], catch_exceptions=False)
    other = CliRunner().invoke(app, [*arguments, "qwen3-235b-a22b", "--json"], catch_exceptions=False)
    values = [json.loads(result.output) for result in (own, other)]
    assert [value["predicted_from_another_model"] for value in values] == [False, True]
    assert values[0]["predicted_tokens_per_s"] > values[1]["predicted_tokens_per_s"] > 0


def test_with_a_large_expert_calls_and_layers_are_told_apart_from_weights() -> None:
    """A machine that takes 0.2 s a call, 0.1 s a layer and 10 ns a weight, whatever the model, is found again."""
    each, weights, large = 1e-8, SMALL.expert_parameters, 10**8
    before = profile(
        expert={16: times_of(0.2 + each * weights)},
        large={16: times_of(0.2 + each * large)},
        large_weights=large,
        layers=48,
        dense=times_of(48 * 0.1 + each * SMALL.outside_parameters_per_token),
    )
    after = scaled(before, LARGE)
    assert after.expert[16].seconds == pytest.approx([0.2 + each * LARGE.expert_parameters])
    assert after.dense.seconds == pytest.approx([94 * 0.1 + each * LARGE.outside_parameters_per_token])


def test_a_large_expert_tells_nothing_new_of_one_that_is_large_itself() -> None:
    before = profile(large={16: times_of(9.0)}, large_weights=SMALL.expert_parameters * 3 // 2, layers=48)
    assert scaled(before, LARGE).expert == scaled(profile(), LARGE).expert


def test_a_small_expert_that_a_cache_makes_fast_takes_the_large_ones_rate() -> None:
    weights = SMALL.expert_parameters
    before = profile(expert={16: times_of(1e-9 * weights)}, large={16: times_of(1.0)}, large_weights=10**8, layers=48)
    assert scaled(before, LARGE).expert[16].seconds == pytest.approx([1e-8 * LARGE.expert_parameters])
