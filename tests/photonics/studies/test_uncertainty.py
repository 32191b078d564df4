"""Sensitivity of the photonic claims against cases that have a closed form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lumoe.errors import UserError
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.load import load_network
from lumoe.photonics.studies.metrics import METRICS
from lumoe.photonics.studies.uncertainty import Choice, Factor, analyse, factors, read_studies, summaries
from lumoe.resources import data_path

NETWORKS = {"pcnna": load_network("alexnet-ungrouped"), "winograd": load_network("vgg16")}
STUDIES = {study.metric: study for study in read_studies(data_path("uncertainty.yaml"))}


def run(metric: str, samples: int = 256, seed: int = 0):
    study = STUDIES[metric]
    return analyse(study, NETWORKS[study.accelerator], samples=samples, seed=seed)


def test_the_optical_core_hangs_on_the_clock_alone() -> None:
    table = run("speedup_optical_core").set_index("parameter")
    assert table.loc["clock", "total_order"] == pytest.approx(1, abs=0.02)
    assert (table.drop("clock")["total_order"] < 1e-6).all()
    # The speed-up is linear in the clock, sampled evenly in its logarithm from 1 to 10 GHz.
    row = table.loc["clock"]
    needed = row["value"] * row["threshold"] / row["nominal"]
    assert row["fraction_holds"] == pytest.approx(1 - math.log10(needed), abs=0.02)
    assert row["at_high"] / row["at_low"] == pytest.approx(10)


def test_indices_of_a_product_are_the_shares_of_variance() -> None:
    table = run("speedup_full_system", samples=1024).set_index("parameter")
    devices = load_devices("pcnna")
    uniform = (np.arange(100_000) + 0.5) / 100_000
    # Speed-up ~ DACs x rate: the logarithm is a sum, so first and total order agree with the shares.
    variance = {}
    for name, whole in {"input_dacs": True, "dac_rate": False}.items():
        parameter = devices[name]
        factor = Factor(name, parameter.unit, parameter.si, *parameter.range_si, "assumed", False, whole=whole)
        variance[name] = np.log10(factor.scale(uniform)).var()
    for name, found in variance.items():
        share = found / sum(variance.values())
        assert table.loc[name, "first_order"] == pytest.approx(share, abs=0.05)
        assert table.loc[name, "total_order"] == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("metric", STUDIES)
def test_swings_include_the_published_value_and_shares_are_shares(metric: str) -> None:
    table = run(metric, samples=16)
    assert table["fraction_holds"].between(0, 1).all()
    assert (table["p05"] <= table["p50"]).all()
    assert (table["p50"] <= table["p95"]).all()
    assert table["nominal"].nunique() == 1
    assert table["low"].le(table["value"]).all()
    assert table["high"].ge(table["value"]).all()


def test_a_seed_makes_the_run_repeatable() -> None:
    first, again, other = (
        run("speed_over_fastest", 16, 0),
        run("speed_over_fastest", 16, 0),
        run("speed_over_fastest", 16, 2),
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_only_what_the_model_reads_is_varied() -> None:
    study = STUDIES["efficiency_over_lowest"]
    evaluate = METRICS["winograd"](NETWORKS["winograd"])
    names = {factor.name for factor in factors(study, load_devices("moderate"), evaluate)}
    assert {"clock", "ring_power", "sram_bandwidth", "tile", "batch", "memory"} <= names
    assert "sram_area" not in names


def test_a_range_may_begin_at_zero() -> None:
    study = STUDIES["speedup_all_bounds"]
    free = Choice(value=1, low=0, high=1, why="on or off")
    study = study.model_copy(update={"design": {"in_time": free}})
    (found,) = (
        x for x in factors(study, load_devices("pcnna"), METRICS["pcnna"](NETWORKS["pcnna"])) if x.name == "in_time"
    )
    assert (found.low, found.high) == (0, 1)


def test_counts_stay_whole_and_levels_stay_levels() -> None:
    uniform = np.linspace(0, 1, 101)
    dacs = Factor("dacs", "1", 10, 1, 100, "assumed", False, whole=True).scale(uniform)
    assert (dacs == dacs.round()).all()
    assert (dacs.min(), dacs.max()) == (1, 100)
    tiles = Factor("tile", "1", 2, 1, 6, "assumed", True, levels=(1, 2, 4, 6)).scale(uniform)
    assert set(tiles) == {1, 2, 4, 6}


def test_summaries_name_what_decides() -> None:
    (record,) = summaries(run("speedup_optical_core", samples=64))
    assert str(record["decisive"]).startswith("clock (1.0")


def test_a_metric_or_network_without_a_baseline_is_refused() -> None:
    study = STUDIES["speedup_full_system"].model_copy(update={"metric": "speed"})
    with pytest.raises(UserError, match="no metric 'speed'"):
        analyse(study, NETWORKS["pcnna"], samples=16, seed=0)
    with pytest.raises(UserError, match="resnet18"):
        METRICS["pcnna"](load_network("resnet18"))
    with pytest.raises(UserError, match="mobilenet_v2"):
        METRICS["winograd"](load_network("mobilenet_v2"))


@pytest.mark.parametrize("text", ["- 1", "studies: [{claim: x}]", "other: 1"])
def test_an_ill_formed_file_of_studies_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "studies.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="studies"):
        read_studies(path)
