"""Figures of serving: the plotted table is right, and the same table gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumoe.files import read_csv
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.frontier import enumerate_configurations, pareto, predict_anchors, with_perplexity
from lumoe.moe.planning.hardware import read_hardware
from lumoe.plots.moe.configurations import draw_pareto, draw_perplexity, draw_prediction, draw_throughput_memory
from lumoe.plots.moe.serving import draw_residency
from lumoe.resources import data_path

MIXTRAL, A100, WORKLOAD = read_shape("mixtral-8x7b"), read_hardware("a100-80gb"), Workload()
MEMORY = MIXTRAL.memory([4], 64, 1)
ANCHORS = predict_anchors(
    read_csv(data_path("moe-anchors.csv")), CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY
)


@pytest.fixture(scope="module")
def configurations() -> pd.DataFrame:
    return with_perplexity(enumerate_configurations(CostModel(A100, MIXTRAL, MEMORY.expert, WORKLOAD), MEMORY), None)


def test_speed_against_memory_is_the_same_bytes_every_time(tmp_path: Path, configurations):
    for name in ("one", "two"):
        draw_throughput_memory(configurations, ANCHORS, tmp_path / f"{name}.svg", (0.0, 1.0))
    for suffix in (".svg", ".png", ".csv"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    table = read_csv(tmp_path / "one.csv")
    points = table[table["placement"] == "published"]
    assert points["published_tokens_per_s"].tolist() == [0.63, 13.0]
    lines = table[table["placement"] != "published"]
    assert sorted(lines["quantized_experts"].unique()) == [0, 256]
    for _, line in lines.groupby("quantized_experts"):
        assert (np.diff(line["predicted_tokens_per_s"]) > 0).all()
        assert (np.diff(line["bytes_fast"]) >= 0).all()  # the last expert takes the place of the swap buffer


def test_the_frontier_figure_says_which_quality_it_shows(tmp_path: Path, configurations):
    draw_pareto(pareto(configurations, [27_680_000_000]), tmp_path / "counted.svg")
    assert read_csv(tmp_path / "counted.csv")["perplexity"].isna().all()
    measured = pd.DataFrame({"corpus": "a", "bits": 4, "quantized_experts": [0, 256], "perplexity": [2.0, 3.0]})
    draw_pareto(pareto(with_perplexity(configurations, measured), [27_680_000_000]), tmp_path / "measured.svg")
    assert set(read_csv(tmp_path / "measured.csv")["perplexity_basis"]) == {"measured", "interpolated"}


def test_every_choice_of_experts_is_a_point(tmp_path: Path):
    rows = [
        {"corpus": corpus, "policy": policy, "seed": seed, "equivalent_experts": count,
         "expert_bytes": (20 - count) * 10**6, "increase": count / 800,
         "increase_low": count / 900, "increase_high": count / 700}
        for corpus in ("a", "b")
        for policy, seed in (("random", 0), ("random", 1), ("mixed", 0))
        for count in (0, 8, 16)
    ]  # fmt: skip
    draw_perplexity(pd.DataFrame(rows), tmp_path / "perplexity.svg")
    assert len(read_csv(tmp_path / "perplexity.csv")) == len(rows)


def test_the_prediction_figure_holds_the_errors(tmp_path: Path):
    table = pd.DataFrame(
        {
            "quantized_experts": [0, 0, 32],
            "resident_experts": [0, 32, 32],
            "budget_bytes": 1,
            "tokens_per_s": [10.0, 100.0, 200.0],
            "tokens_per_s_min": [9.0, 90.0, 190.0],
            "tokens_per_s_max": [11.0, 110.0, 210.0],
            "predicted_tokens_per_s": [11.0, 90.0, 200.0],
            "device": "test",
        }
    )
    draw_prediction(table, tmp_path / "prediction.svg")
    assert read_csv(tmp_path / "prediction.csv")["error"].tolist() == pytest.approx([0.1, -0.1, 0.0])


def test_the_residency_figure_shows_all_corpora_in_turn_and_the_synthetic_traces(tmp_path: Path):
    rows = [
        {"trace": trace, "policy": policy, "scope": scope, "guesses": guesses, "resident_share": share,
         "hit_rate": share}
        for trace in ("scipy", "torch", "joined", "drift-8x2", "drift-64x8")
        for policy in ("belady", "random", "frequency", "oracle", "lru", "lfru")
        for scope, guesses in (("layer", "none"), ("model", "none"), ("layer", "router"))
        for share in (0.25, 0.5)
    ]  # fmt: skip
    draw_residency(pd.DataFrame(rows), tmp_path / "residency.svg")
    drawn = read_csv(tmp_path / "residency.csv")
    assert sorted(drawn["trace"].unique()) == ["drift-64x8", "drift-8x2", "joined"]
    assert {*drawn["scope"], *drawn["guesses"]} == {"layer", "none"}
    assert len(drawn) == 3 * 6 * 2
    text = (tmp_path / "residency.svg").read_text()
    assert "best fixed choice" in text
    assert "oracle" not in text
    draw_residency(pd.DataFrame(rows[:36]), tmp_path / "one.svg")
    assert read_csv(tmp_path / "one.csv")["trace"].unique().tolist() == ["scipy"]
