"""Which cache policy is recommended, and what the planner makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_machine import BYTES, SMALL, machine
from typer.testing import CliRunner

from lumoe.cli.moe.plan import app
from lumoe.errors import UserError
from lumoe.files import write_csv
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.caching_choice import COLUMNS, HitRates, hit_rates, read_hit_rates
from lumoe.moe.planning.cost import CostModel, Served, Workload
from lumoe.moe.planning.inputs import usual_caching
from lumoe.moe.planning.placement import PaperRules
from lumoe.moe.planning.plan import Memory, Plan
from lumoe.moe.planning.planner import Planner, Wish, unknown_increase

# Policy, scope, half-life and prefetch; hits at half residency; ready and read ahead there.
Line = tuple[str, str, float | None, int, float, float, float]
STATIC: Line = ("static", "layer", None, 0, 0.5, 0.5, 0.0)
LRU: Line = ("lru", "layer", None, 0, 0.55, 0.55, 0.0)
LFRU: Line = ("lfru", "model", 64.0, 0, 0.7, 0.7, 0.0)
AHEAD: Line = ("lfru", "model", 64.0, 2, 0.7, 0.95, 1.0)


def table(*lines: Line, layers: int = 2) -> pd.DataFrame:
    """Rates that rise in a straight line to half residency, and on to all of it."""
    rows = []
    for policy, scope, life, prefetch, hits, ready, ahead in lines:
        for layer in range(layers):
            for share, found, there, read in ((0.0, 0.0, 0.0, ahead), (0.5, hits, ready, ahead), (1.0, 1.0, 1.0, 0.0)):
                rows.append((policy, scope, life, prefetch, share, layer, found, there, read))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_the_usual_policy_is_the_best_over_all_shares_and_reads_nothing_ahead(tmp_path: Path) -> None:
    assert hit_rates(table(STATIC, LRU, LFRU, AHEAD)).usual() == Caching("lfru", "model", 64.0)
    assert hit_rates(table(STATIC, ("lru", "layer", None, 0, 0.502, 0.502, 0.0))).usual() == Caching("static")
    assert usual_caching("a-model", tmp_path) == Caching("lru")
    write_csv(tmp_path / "residency-calibration.csv", table(STATIC, LFRU, AHEAD), COLUMNS)
    assert usual_caching("a-model", tmp_path) == Caching("lfru", "model", 64.0)


def test_rates_under_a_policy_recommend_no_other() -> None:
    rates = hit_rates(table(STATIC, LRU, LFRU, AHEAD))
    assert rates.under(Caching("lru")).recommend(half_resident()).caching == Caching("lru")
    # One that was not tried: what is known is what residents that stay find.
    assert rates.under(Caching("lfru", half_life=3.0)).recommend(half_resident()).caching == Caching("static")


def half_resident() -> Plan:
    return Plan(np.full((2, 4), 16), np.arange(8).reshape(2, 4) % 2 == 0)


def recommended(*lines: Line) -> Caching:
    return hit_rates(table(*lines)).recommend(half_resident()).caching


def test_the_policy_that_hits_most_is_recommended_at_the_plans_residents() -> None:
    found = hit_rates(table(STATIC, LRU, LFRU)).recommend(half_resident())
    assert found.caching == Caching("lfru", "model", 64.0)
    assert found.rates.hits.tolist() == [0.7, 0.7]
    assert str(found) == (
        "lfru over the whole model, half-life 64, hits 70% on this model's calibration text, static 50%"
    )
    quarter = Plan(np.full((2, 4), 16), np.arange(8).reshape(2, 4) % 4 == 0)
    assert hit_rates(table(STATIC, LFRU)).recommend(quarter).rates.hits == pytest.approx([0.35, 0.35])


def test_of_policies_about_as_good_the_simplest_is_recommended() -> None:
    near: Line = ("lfru", "layer", 64.0, 0, 0.553, 0.553, 0.0)
    assert recommended(STATIC, LRU, near) == Caching("lru")
    same: Line = ("lru", "layer", None, 0, 0.502, 0.502, 0.0)
    found = hit_rates(table(STATIC, same)).recommend(half_resident())
    assert found.caching == Caching("static")
    assert not found.changes
    assert str(found) == "static, hits 50% on this model's calibration text"
    # The scope is no simplification: a better one is taken.
    whole: Line = ("lru", "model", None, 0, 0.555, 0.555, 0.0)
    assert recommended(STATIC, LRU, whole) == Caching("lru", "model")


def test_reading_ahead_is_recommended_where_a_score_says_that_it_pays() -> None:
    rates = hit_rates(table(STATIC, LFRU, AHEAD))
    assert rates.recommend(half_resident()).caching.prefetch == 0
    ready = rates.recommend(half_resident(), lambda found: float(found.ready.mean()))
    assert ready.caching == Caching("lfru", "model", 64.0, 2)
    assert "2 read ahead (95% are ready)" in str(ready)
    costly = rates.recommend(half_resident(), lambda found: float((found.ready - found.ahead).mean()))
    assert costly.caching.prefetch == 0


def planner(rates: HitRates | None, overlapped: bool = False) -> Planner:
    rules = PaperRules(Memory(BYTES, 0, 40), (2, 4), np.arange(8))
    return Planner(
        rules, unknown_increase, CostModel(machine(overlapped), SMALL, BYTES, Workload(1, 11)), hit_rates=rates
    )


def test_the_planner_predicts_with_the_recommended_policy() -> None:
    wish = Wish(200, "quality")  # of four experts of 40 bytes and a buffer
    fixed, changing = (planner(rates).propose(wish) for rates in (None, hit_rates(table(STATIC, LFRU))))
    assert fixed.plan == changing.plan
    assert fixed.plan.resident_experts == 4
    assert fixed.prediction is not None
    assert changing.prediction is not None
    # Decoding: 1 s outside the experts, 4 experts of 1 s, and 5 s for each of 4 look-ups that misses.
    assert fixed.prediction.decode_s == pytest.approx(1 + 4 + 5 * 4 * 0.5)
    assert changing.prediction.decode_s == pytest.approx(1 + 4 + 5 * 4 * 0.3)
    assert changing.prediction.prefill_s == fixed.prediction.prefill_s
    assert changing.to_dict()["residency"]["policy"] == "lfru"
    assert fixed.to_dict()["residency"] is None
    everything = planner(hit_rates(table(STATIC, LFRU))).propose(Wish(320, "quality"))
    assert everything.caching is None


def test_reads_ahead_take_what_the_computation_beside_them_does_not_hide() -> None:
    plan = half_resident()
    alone, beside = (CostModel(machine(overlapped), SMALL, BYTES) for overlapped in (False, True))
    served = Served(np.ones(2), np.ones(2))
    # A read of 5 s a layer; beside it run the 2 s of a layer's experts and half of the 1 s outside them.
    assert alone.step_seconds(plan, 1, served) == pytest.approx(1 + 4 + 2 * 5)
    assert beside.step_seconds(plan, 1, served) == pytest.approx(1 + 4 + 2 * (5 - 2 - 0.5))
    for costs in (alone, beside):
        assert costs.replayed_seconds(16, np.zeros((3, 2)), np.ones((3, 2))) == pytest.approx(
            costs.step_seconds(plan, 1, served)
        )


@pytest.mark.parametrize("misses", [0, 1, 2])
def test_replayed_misses_take_what_the_formula_says_of_certain_ones(misses: int) -> None:
    costs = CostModel(machine(overlapped=True), SMALL, BYTES)
    # Two experts of 1 s each, reads of 5 s one after another, the last one computed after its read.
    layer = {0: 2.0, 1: max(2.0, 5 + 1), 2: 5 + 5 + 1}[misses]
    assert costs.replayed_seconds(16, np.full((4, 2), misses), 0.0 * np.ones((4, 2))) == pytest.approx(1 + 2 * layer)


def test_shares_by_policy_alone_are_what_a_plan_of_these_residents_gives() -> None:
    costs = CostModel(machine(overlapped=True), SMALL, BYTES)
    plan = half_resident()
    assert costs.predict(plan, Served([0.5, 0.5])) == costs.predict(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[rows["policy"] != "static"], "static"),
        (lambda rows: rows.iloc[:-1], "each share and layer"),
        (lambda rows: rows.assign(hit_rate=rows["hit_rate"] + 1), "out of range"),
        (lambda rows: rows.replace("lfru", "fifo"), "'fifo'"),
        (lambda rows: rows.drop(columns="layer"), "layer"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, change, message: str) -> None:
    write_csv(tmp_path / "rates.csv", change(table(STATIC, LFRU)))
    with pytest.raises(UserError, match=message):
        read_hit_rates(tmp_path / "rates.csv")


def test_the_command_says_which_policy_and_refuses_rates_of_another_model(tmp_path: Path) -> None:
    write_csv(tmp_path / "rates.csv", table(STATIC, LFRU, layers=32))
    arguments = ["plan", "--model", "mixtral-8x7b", "--budget", "50%", "--prefer", "quality"]
    arguments += ["--residency", str(tmp_path / "rates.csv")]
    text = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "residency   lfru over the whole model, half-life 64, hits " in text
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).output)
    without = json.loads(CliRunner().invoke(app, [*arguments[:-2], "--json"], catch_exceptions=False).output)
    assert found["residency"]["half_life"] == 64
    assert found["predicted_tokens_per_s"] > without["predicted_tokens_per_s"]
    write_csv(tmp_path / "rates.csv", table(STATIC, LFRU, layers=3))
    with pytest.raises(UserError, match="3 layers"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
