"""The planner: what it proposes for a wish, and the nearest plan where the wish is impossible."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lumoe.cli.moe.plan import app
from lumoe.errors import UserError
from lumoe.files import read_csv, read_yaml
from lumoe.moe.architectures.read import SHAPE_KEYS, read_shape
from lumoe.moe.planning.cost import CostModel
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.inputs import Known
from lumoe.moe.planning.placement import PaperRules
from lumoe.moe.planning.plan import Memory, Plan
from lumoe.moe.planning.planner import Planner, Wish, choose, measured_increase, summed_increase, unknown_increase
from lumoe.resources import data_path

MIXTRAL = read_shape("mixtral-8x7b")
ORDER = np.arange(256)
MEMORY = MIXTRAL.memory([4], 64, 1)
PLANNER = Planner(
    PaperRules(MEMORY, MIXTRAL.plan_shape, ORDER),
    measured_increase(read_csv(data_path("measurements", "mixtral-8x7b-perplexity.csv")), 4),
    CostModel(read_hardware("a100-80gb"), MIXTRAL, MEMORY.expert),
)


@pytest.mark.parametrize("budget", [26_280_000_000, 36_130_000_000, 53_030_000_000])
def test_throughput_without_limits_is_the_papers_plan(budget):
    proposal = PLANNER.propose(Wish(budget, "throughput"))
    expected = PaperRules(MEMORY, MIXTRAL.plan_shape, ORDER).throughput(budget)
    assert proposal.plan.quantized_experts == expected.quantized_experts
    assert proposal.plan.resident_experts == expected.resident_experts
    assert proposal.possible


def test_quality_without_limits_quantises_nothing():
    assert PLANNER.propose(Wish(27_680_000_000, "quality")).plan.quantized_experts == 0


@given(
    budget=st.integers(5, 95),
    speed=st.floats(0, 14),
    increase=st.floats(0, 0.05),
    preference=st.sampled_from(["throughput", "quality"]),
)
def test_a_possible_wish_is_met_and_an_impossible_one_names_what_is_missing(budget, speed, increase, preference):
    wish = Wish(budget * 10**9, preference, speed, increase)
    speeds = np.linspace(0.5, 13, 257) * budget / 95
    increases = np.linspace(0, 0.04, 257)
    index, missing = choose(wish, speeds, increases)
    possible = ((speeds >= speed) & (increases <= increase)).any()
    assert possible == (not missing)
    if possible:
        assert speeds[index] >= speed
        assert increases[index] <= increase
        better = (speeds >= speed) & (increases <= increase)
        key = speeds if preference == "throughput" else -increases
        assert key[index] == key[better].max()
    else:
        # Quality is always in reach here, so what is missing is speed, and no allowed plan is nearer.
        assert missing == {"tokens_per_s": pytest.approx(speed - speeds[increases <= increase].max())}


def test_quality_with_a_speed_limit_gives_up_no_more_than_it_must():
    proposal = PLANNER.propose(Wish(27_680_000_000, "quality", min_tokens_per_s=2.0))
    assert proposal.prediction.tokens_per_s >= 2
    fewer = PLANNER.candidates(27_680_000_000)[proposal.plan.quantized_experts - 1]
    assert fewer.quantized_experts == proposal.plan.quantized_experts - 1
    tight = Wish(27_680_000_000, "quality", min_tokens_per_s=proposal.prediction.tokens_per_s + 1e-9)
    assert PLANNER.propose(tight).plan.quantized_experts > proposal.plan.quantized_experts


def test_of_equally_fast_plans_the_better_one_is_taken():
    assert choose(Wish(1, "throughput"), [1.0, 2.0, 2.0], [0.0, 0.1, 0.2]) == (1, {})
    assert choose(Wish(1, "quality"), [1.0, 2.0, 2.0], [0.1, 0.1, 0.2]) == (1, {})


def test_an_unknown_quality_meets_no_limit_but_that_of_not_quantising():
    nan = float("nan")
    assert choose(Wish(1, "throughput", max_perplexity_increase=0.1), [1.0, 2.0, 3.0], [0.0, nan, nan]) == (0, {})
    assert choose(Wish(1, "throughput"), [1.0, 2.0, 3.0], [0.0, nan, nan]) == (2, {})


def test_published_perplexities_give_the_published_increase():
    increase = PLANNER.increase
    ratios = [4.00 / 3.81, 14.17 / 13.59, 7.40 / 7.24]
    assert increase(np.full((32, 8), 4)) == pytest.approx(np.prod(ratios) ** (1 / 3) - 1)
    assert increase(np.full((32, 8), 16)) == 0


def test_costs_of_experts_add_up():
    increase = summed_increase({4: [[0.1, 0.2]], 16: [[0.0, 0.0]]})
    assert increase(np.array([[4, 4]])) == pytest.approx(np.expm1(0.3))
    assert increase(np.array([[16, 4]])) == pytest.approx(np.expm1(0.2))
    assert np.isnan(increase(np.array([[16, 8]])))
    assert unknown_increase(np.array([[16, 16]])) == 0


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_says_what_the_plan_will_give():
    text = run("--model", "mixtral-8x7b", "--budget", "53.03GB", "--prefer", "throughput", "--buffer-experts", "1")
    assert "160 at 4 bits, 96 at 16 bits; 256 of 256 resident" in text
    assert "13 new tokens/s" in text
    assert "swap buffer" in text


def test_the_command_names_the_missing_number():
    text = run("--model", "mixtral-8x7b", "--budget", "53.03GB", "--prefer", "quality", "--min-tokens-per-s", "20")
    assert "impossible" in text
    assert "7 tokens/s are missing" in text


def test_json_is_a_plan(tmp_path):
    path = tmp_path / "plan.json"
    text = run(
        "--model", "mixtral-8x7b", "--budget", "30%", "--prefer", "throughput", "--json", "--output", str(path)
    )  # fmt: skip
    value = json.loads(text)
    assert value == json.loads(path.read_text())
    plan = Plan.from_dict(value)
    assert plan.resident_experts == value["resident_experts"]
    assert value["missing"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "3GB", "--prefer", "quality"], "at least 3915915264"),
        (["--budget", "24GB", "--prefer", "speed"], "'speed'"),
        (["--budget", "lots", "--prefer", "quality"], "'lots'"),
        (["--budget", "24GB", "--prefer", "quality", "--hardware", "h100"], "'h100'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["plan", "--model", "mixtral-8x7b", *arguments], catch_exceptions=False)


def test_a_profile_of_another_model_is_refused(tmp_path):
    shipped = read_yaml(data_path("shapes", "mixtral-8x7b.yaml"))
    config = {key: value for key, value in shipped.items() if key not in SHAPE_KEYS} | {"hidden_size": 2048}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"\(2048, 14336\)"):
        CliRunner().invoke(
            app,
            ["plan", "--model", str(tmp_path), "--budget", "50%", "--prefer", "quality", "--hardware", "a100-80gb"],
            catch_exceptions=False,
        )


def test_measurements_go_before_published_numbers(tmp_path):
    assert Known.find("mixtral-8x7b", tmp_path).hardware == "a100-80gb"
    pd.DataFrame({"corpus": [], "bits": []}).to_csv(tmp_path / "perplexity.csv")
    (tmp_path / "machine.json").write_text("{}")
    known = Known.find("mixtral-8x7b", tmp_path)
    assert known.hardware == str(tmp_path / "machine.json")
    assert known.perplexity == tmp_path / "perplexity.csv"
    with pytest.raises(UserError, match="lumoe moe calibrate"):
        Known.find(str(tmp_path), tmp_path / "nothing")


@pytest.mark.parametrize("budget", [26_280_000_000, 36_130_000_000, 53_030_000_000, 100_000_000_000])
@pytest.mark.parametrize("preference", ["throughput", "quality"])
def test_without_a_profile_the_papers_rules_decide_and_nothing_is_predicted(budget, preference):
    rules = PLANNER.rules
    proposal = Planner(rules, unknown_increase).propose(Wish(budget, preference))
    assert proposal.plan == rules.plan(budget, preference)
    assert proposal.prediction is None
    assert proposal.to_dict()["predicted_tokens_per_s"] is None
    with pytest.raises(UserError, match="need a profile of this machine"):
        Planner(rules, unknown_increase).propose(Wish(budget, preference, min_tokens_per_s=1.0))


def test_a_model_of_many_experts_is_planned_with_evenly_spaced_counts():
    shape = MIXTRAL.model_copy(update={"num_hidden_layers": 48, "num_local_experts": 128})
    rules = PaperRules(shape.memory([4], 64), shape.plan_shape, np.arange(6144))
    counts = [plan.quantized_experts for plan in Planner(rules, unknown_increase).candidates(10**13)]
    assert counts == list(range(0, 6145, 24))


def test_where_quantising_frees_nothing_only_the_16_bit_plan_is_tried():
    expanded = Memory({4: 100, 16: 100}, 10)
    rules = PaperRules(expanded, (2, 4), np.arange(8))
    (plan,) = Planner(rules, unknown_increase).candidates(500)
    assert (plan.quantized_experts, plan.resident_experts) == (0, 4)
    assert rules.plan(500, "throughput") == plan


def planned(*arguments: str) -> str:
    return CliRunner().invoke(app, ["plan", "--model", "mixtral-8x7b", *arguments], catch_exceptions=False).output


@pytest.mark.parametrize("bits", ["2", "3", "8"])
def test_precisions_whose_perplexity_is_not_known_are_planned_and_it_is_said(bits):
    shipped = data_path("measurements", "mixtral-8x7b-perplexity.csv")
    fast = planned("--budget", "30GB", "--prefer", "throughput", "--bits", bits)
    assert f"perplexity  not known ({shipped} has 4 bits, not {bits})" in fast
    careful = planned("--budget", "30GB", "--prefer", "quality", "--bits", bits)
    assert f"no expert quantised, for what {bits} bits cost in quality is not known" in careful
    limited = json.loads(
        planned("--budget", "30GB", "--prefer", "quality", "--bits", bits, "--min-tokens-per-s", "1.2", "--json")
    )
    count = limited["quantized_experts"]
    assert f"{count} quantised, the fewest that reach 1.2 tokens/s" in limited["why"]
    assert limited["perplexity_increase"] is None
    memory = replace(MIXTRAL.memory([int(bits)], 64), swap_buffers=2)
    costs = CostModel(read_hardware("a100-80gb"), MIXTRAL, memory.expert)
    rules = PaperRules(memory, MIXTRAL.plan_shape, ORDER, int(bits))
    assert costs.predict(rules.quality(30 * 10**9, count - 1)).tokens_per_s < 1.2 <= limited["predicted_tokens_per_s"]


def test_at_16_bits_nothing_is_quantised_and_the_reason_is_true():
    for preference in ("throughput", "quality"):
        words = planned("--budget", "30GB", "--prefer", preference, "--bits", "16")
        assert "256 at 16 bits" in words
        assert "16 bits save no memory, so no expert is quantised" in words


def test_perplexities_stand_in_where_sensitivities_are_of_other_bits(tmp_path):
    experts = pd.MultiIndex.from_product([range(32), range(8)], names=["layer", "expert"]).to_frame(index=False)
    experts.assign(bits=3, divergence=0.01, tokens=100).to_csv(tmp_path / "sensitivity.csv", index=False)
    common = ["--hardware", "a100-80gb", "--measurements", str(tmp_path), "--budget", "30GB", "--prefer", "throughput"]
    assert "published, interpolated" in planned(*common, "--bits", "4")
    modelled = planned(*common, "--bits", "3")
    assert "modelled: sum" in modelled
    assert f"not known ({tmp_path / 'sensitivity.csv'} has 3 bits, not 8)" in planned(*common, "--bits", "8")


def test_perplexities_without_the_model_as_it_is_are_refused(tmp_path):
    table = tmp_path / "perplexity.csv"
    table.write_text("corpus,bits,quantized_experts,perplexity\na,4,128,4.0\na,4,256,5.0\n")
    with pytest.raises(UserError, match=f"{table}: no perplexity of 0 quantised experts at 4 bits"):
        planned("--perplexity", str(table), "--budget", "30GB", "--prefer", "quality")


def test_configurations_are_enumerated_without_perplexities_at_their_bits(tmp_path):
    files = {name: str(tmp_path / f"{name}.csv") for name in ("configurations", "pareto", "sweep")}
    shipped = str(data_path("measurements", "mixtral-8x7b-perplexity.csv"))
    options = ["--hardware", "a100-80gb", "--perplexity", shipped, "--budget", "30GB", "--bits", "8"]
    options += [word for name, path in files.items() for word in (f"--{name}", path)]
    CliRunner().invoke(app, ["enumerate", "--model", "mixtral-8x7b", *options], catch_exceptions=False)
    table = pd.read_csv(files["configurations"])
    assert len(table) == 3 * 257**2
    assert table["perplexity"].isna().all()
    assert table["perplexity_basis"].isna().all()
