"""What the pipeline does with measurements at true scale: nothing without them; else a summary, figures, a verdict.

The speeds in these tests are made up, and say so in the device's name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.true_scale.sweep import COLUMNS
from lumoe.cli.moe import app
from lumoe.cli.plot.moe import app as plots
from lumoe.errors import UserError
from lumoe.moe.measurement.true_scale import SUMMARY, describe, read_measurements, summarize
from lumoe.pipeline.claims import judge, overall, read_claims
from lumoe.resources import data_path

ROOT = Path(__file__).parents[3]
DEVICE = "made up for a test"


def made_up(slowest: float = 0.5, scale: float = 1.0) -> pd.DataFrame:
    """A sweep of two schemes: speed rises with the share of resident experts."""
    rows = []
    for scheme, gain in (("paper", 1.0), ("overlap", 2.0)):
        for count in (0, 256):
            for point, resident in (("26280000000", 64), ("half", 128), ("all", 256)):
                speed = gain * slowest / (1 - 0.95 * resident / 256) * (1.5 if count else 1.0)
                rows.append(
                    {
                        "scheme": scheme, "routing": "uniform", "batch": 1, "point": point, "quantized_experts": count,
                        "resident_experts": resident, "budget_bytes": 26_280_000_000 + resident * 10**8,
                        "bytes_fast": 26_280_000_000 + resident * 10**8, "tokens_per_s": speed * scale,
                        "tokens_per_s_min": speed * 0.9, "tokens_per_s_max": speed * 1.1,
                        "predicted_tokens_per_s": speed * scale * 1.1,
                        "floor_tokens_per_s": 100.0 if point == "all" else np.nan,
                        "model": "mixtral-8x7b", "device": DEVICE, "commit": "none", "basis": "measured",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def write(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "true_scale.csv", index=False)
    return folder / "true_scale.csv"


def test_summary_holds_range_ratio_gain_and_error(tmp_path: Path) -> None:
    found = summarize(read_measurements(write(tmp_path, made_up())))
    assert tuple(found.columns) == SUMMARY
    paper, overlap = found.to_dict("records")
    slow, fast = 0.5 / (1 - 0.95 / 4), 1.5 * 0.5 / 0.05
    assert (paper["lowest_tokens_per_s"], paper["highest_tokens_per_s"]) == pytest.approx((slow, fast))
    assert paper["ratio"] == pytest.approx(fast / slow)
    assert (paper["half_over_paper"], overlap["half_over_paper"]) == pytest.approx((1.0, 2.0))
    assert paper["all_4bit_tokens_per_s"] == pytest.approx(fast)
    assert overlap["all_4bit_over_floor"] == pytest.approx(2 * fast / 100)
    assert paper["median_error"] == pytest.approx(0.1)
    assert DEVICE in describe(found)
    assert "2.00 x the paper's scheme at half residency" in describe(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens_per_s": 0.0}, "needs a speed above 0"),
        ({"model": "tiny"}, "'model' must be 'mixtral-8x7b' in every row, not tiny"),
        ({"basis": "modelled"}, "'basis' must be 'measured'"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_measurements(write(tmp_path, made_up().assign(**change)))
    mixed = pd.concat([made_up(), made_up().assign(device="another")])
    with pytest.raises(UserError, match="rows of 2 devices"):
        read_measurements(write(tmp_path, mixed))


@pytest.mark.parametrize(
    ("table", "verdict", "basis"),
    [
        (None, "not-run", ""),
        (made_up(slowest=0.5), "reproduced-under-assumptions", "measured"),
        (made_up(slowest=0.5).query("point != 'all'"), "not-reproduced", "measured"),
        # One routing that the claim is not about.
        (made_up().assign(routing="zipf:0.5"), "not-run", ""),
    ],
)
def test_the_claim_is_judged_from_the_measured_range_alone(
    tmp_path: Path, table: pd.DataFrame | None, verdict: str, basis: str
) -> None:
    if table is not None:
        write(tmp_path / "measured", table)
    results = tmp_path / "results"
    output = results / "moe/mixtral-8x7b/true-scale.csv"
    run = CliRunner().invoke(app, ["true-scale", "--folder", str(tmp_path / "measured"), "--output", str(output)])
    assert run.exit_code == 0, run.output
    assert tuple(pd.read_csv(output).columns) == SUMMARY
    claims = read_claims(data_path("claims.yaml"))
    claim = next(claim for claim in claims.claims if claim.claim == "moe-throughput-range")
    measured = [quantity for quantity in claim.quantities if quantity.optional]
    assert len(measured) == 4
    only = claims.model_copy(update={"claims": [claim.model_copy(update={"quantities": measured})]})
    found = judge(only, results, {})
    first = overall(found).iloc[0]
    assert (first["verdict"], first["basis"]) == (verdict, basis)
    assert ("needs a GPU" in first["assumption"]) == (verdict == "not-run")
    if verdict != "not-run":
        assert first["value"] == pytest.approx(summarize(table)["ratio"].iloc[0])  # type: ignore[arg-type]
        assert found["value"].notna().all()
    assert (found["verdict"].iloc[1:] == "not-run").all(), "only the range decides the claim"


def test_figures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    table = write(tmp_path, made_up())
    model = pd.DataFrame(
        {
            "placement": "quantized-first", "quantized_experts": np.repeat([0, 256], 3), "hardware": "a100-80gb",
            "resident_experts": np.tile([64, 128, 256], 2),
            "bytes_fast": np.tile([27e9, 50e9, 95e9], 2), "predicted_tokens_per_s": np.tile([0.6, 1.0, 13.0], 2),
        }
    )  # fmt: skip
    model.to_csv(tmp_path / "configurations.csv", index=False)
    pd.DataFrame({"budget_bytes": [27.68e9, 53.03e9], "published_tokens_per_s": [0.63, 13.0]}).to_csv(
        tmp_path / "anchors.csv", index=False
    )
    pd.DataFrame(
        {"peer": ["accelerate"], "batch": [1], "budget_bytes": [26_280_000_000], "tokens_per_s": [0.2]}
    ).to_csv(tmp_path / "true_scale_peers.csv", index=False)
    arguments = [
        "--table",
        table,
        "--configurations",
        tmp_path / "configurations.csv",
        "--anchors",
        tmp_path / "anchors.csv",
    ]
    for more, name in (([], "alone"), (["--peers", tmp_path / "true_scale_peers.csv"], "peers")):
        output = tmp_path / f"{name}.svg"
        run = CliRunner().invoke(plots, ["true-scale", *map(str, [*arguments, *more, "--output", output])])
        assert run.exit_code == 0, run.output
        assert len(pd.read_csv(output.with_suffix(".csv"))) == 12
        text = output.read_text()
        assert DEVICE in text
        assert ("accelerate" in text) == (name == "peers")
    run = CliRunner().invoke(plots, ["prediction", "--table", str(table), "--output", str(tmp_path / "prediction.svg")])
    assert run.exit_code == 0, run.output
    assert "median error 10%" in (tmp_path / "prediction.svg").read_text()


def test_the_pipeline_draws_what_is_there_and_plans_the_rest_as_ever(tmp_path: Path) -> None:
    for name in ("workflow", "config", "data", "src", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)

    def planned(*settings: str) -> str:
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet=rules", *settings]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert run.returncode == 0, run.stderr
        return run.stdout + run.stderr

    figures = ("draw_true_scale", "draw_true_scale_prediction")
    without = planned()
    assert "summarize_true_scale" in without
    assert not any(rule in without for rule in figures)
    write(tmp_path / "measured", made_up())
    with_table = planned("--config", "placement={true_scale: measured}")
    assert all(rule in with_table for rule in figures)
