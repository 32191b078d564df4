"""Budget traces: what they are, and what a replay records."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.engine.open import open_model
from lumoe.moe.measurement.adaptation import COLUMNS, STRATEGIES, Scale, compare, events, replay, summarize
from lumoe.moe.measurement.budget_traces import budgets, multi_tenant, read_trace, sawtooth, steps
from lumoe.plots.moe.adaptation import draw_adaptation

ROOT = Path(__file__).parents[3]
PROMPTS = torch.randint(0, 96, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "table"),
    [("steps", steps(60.0)), ("sawtooth", sawtooth(60.0)), ("multi-tenant", multi_tenant(60.0, seed=0))],
)
def test_the_shipped_traces_are_what_their_command_writes(name: str, table: pd.DataFrame) -> None:
    shipped = read_trace(ROOT / "data" / "traces" / f"{name}.csv")
    pd.testing.assert_frame_equal(shipped, table, rtol=1e-9)


@given(seed=st.integers(0, 2**32), arrivals=st.floats(0.1, 20), floor=st.integers(0, 90))
def test_tenants_leave_at_least_the_floor(seed: int, arrivals: float, floor: int) -> None:
    table = multi_tenant(60.0, seed, arrivals_per_hour=arrivals, floor=floor)
    left = np.array(budgets(table, 100)) if floor else table["budget"].str.rstrip("%").astype(int).to_numpy()
    assert left[0] == 100
    assert left.min() >= floor
    assert left.max() <= 100
    assert table["time_s"].iloc[0] == 0
    assert (table["time_s"].diff().dropna() > 0).all()
    assert table["time_s"].iloc[-1] <= 60


def test_tenants_arrive_as_a_poisson_process_of_the_asked_rate() -> None:
    # Nobody stays, nobody is turned away: every arrival and departure is a change.
    arrivals = [(len(multi_tenant(86400.0, seed, 2.0, stay_hours=1e-3, floor=0)) - 1) / 2 for seed in range(60)]
    mean, expected = np.mean(arrivals), 2.0 * 24
    assert abs(mean - expected) < 4 * np.sqrt(expected / len(arrivals))
    assert 0.5 < np.var(arrivals) / expected < 1.7, "variance and mean of a Poisson count agree"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("time_s,budget\n0,1GB\n", "preference"),
        ("time_s,budget,preference\n1,50%,quality\n", "time_s"),
        ("time_s,budget,preference\n0,50%,quality\n0,60%,quality\n", "time_s"),
        ("time_s,budget,preference\n0,much,quality\n", "much"),
        ("time_s,budget,preference\n0,50%,cheap\n", "cheap"),
        ("time_s,budget,preference\n", "time_s"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_a_trace_is_scaled_to_the_replay() -> None:
    changes = events(steps(60.0), 1000, 6.0)
    assert [change.time_s for change in changes] == pytest.approx([0, 1, 2, 3, 4, 5])
    assert [change.budget_bytes for change in changes] == [1000, 600, 300, 600, 1000, 1000]


@pytest.fixture(scope="module")
def record(model_bf16: Path, quantized: dict[int, Path]) -> pd.DataFrame:
    open_anew = partial(open_model, model_bf16, quantized[4])
    trace = steps(60.0).assign(budget=["100%", "70%", "60%", "70%", "100%", "100%"])
    return compare(open_anew, {"steps": trace}, PROMPTS, Scale(1.2, 0.1, new_tokens=4))


def test_a_replay_records_each_change_and_stays_within_the_budget(record: pd.DataFrame) -> None:
    assert list(record.columns) == list(COLUMNS)
    assert set(record["strategy"]) == set(STRATEGIES)
    table = summarize(record).set_index("strategy")
    assert table["changes"].to_dict() == {"adaptive": 5, "static": 0, "restart": 5}
    assert (record["bytes_fast"] <= record["budget_bytes"]).all()
    assert (table["tokens_per_s"] > 0).all()
    assert table.loc["adaptive", "failed_requests"] == 0
    adaptive = record[(record["strategy"] == "adaptive") & record["reconfiguration_s"].notna()]
    assert (adaptive["freed_s"] <= adaptive["reconfiguration_s"]).all()
    assert adaptive["quantized_experts"].tolist()[-1] == 0, "quality is asked for at the end"
    assert adaptive["quantized_experts"].max() > 0
    last = record[record["strategy"] == "adaptive"].iloc[-1]
    assert last["resident_experts"] == 12


def test_the_figure_shows_what_each_way_of_changing_costs(record: pd.DataFrame, tmp_path: Path) -> None:
    draw_adaptation(record, tmp_path / "adaptation.svg")
    drawn = pd.read_csv(tmp_path / "adaptation.csv")
    assert len(drawn) == len(record)
    changes = drawn[drawn["reconfiguration_s"].notna()].groupby("strategy")
    assert changes.size().to_dict() == {"adaptive": 5, "restart": 5}
    assert changes["failed_requests"].sum()["adaptive"] == 0


def test_a_budget_that_is_too_small_is_refused_before_anything_is_generated(
    model_bf16: Path, quantized: dict[int, Path]
) -> None:
    open_anew = partial(open_model, model_bf16, quantized[4])
    trace = steps(60.0).assign(budget=["100%", "1%", "50%", "50%", "50%", "50%"])
    with pytest.raises(UserError, match="too small"):
        replay(open_anew, trace, "adaptive", PROMPTS, Scale(60.0, 0.1))
