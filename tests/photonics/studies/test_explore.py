"""Estimates and sweeps: sums that close, points that agree, Pareto sets against brute force, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from lumoe.cli.photonics.design import app
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import ACCELERATORS
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies import explore as sweep
from lumoe.photonics.studies.estimate import estimate_table

ALEXNET = load_network("alexnet")


def table_of(point: DesignPoint, network: Network = ALEXNET) -> pd.DataFrame:
    return estimate_table(network, point.evaluate(convolution_shapes(network.convolutions())))


@pytest.mark.parametrize("design", ACCELERATORS)
@pytest.mark.parametrize("network", ["alexnet", "mobilenet_v2"])
def test_components_and_layers_add_up(design: str, network: str) -> None:
    table = table_of(DesignPoint.named(design), load_network(network))
    layers, whole = table.iloc[:-1], table.iloc[-1]
    assert table.filter(regex="^energy_.+_j$").sum(axis=1).to_numpy() == pytest.approx(table["energy_j"].to_numpy())
    for column in ("macs", "weights", "time_s", "energy_j"):
        assert layers[column].sum() == pytest.approx(whole[column])
    assert (table["power_w"] * table["time_s"]).to_numpy() == pytest.approx(table["energy_j"].to_numpy())
    assert whole["area_mm2"] >= layers["area_mm2"].max() * (1 - 1e-12)
    assert whole["bits"] == layers["bits"].min()


def test_twice_the_converters_halve_the_input_time_and_nothing_else() -> None:
    one, two = (table_of(DesignPoint.named("pcnna", choices=made)).set_index("layer") for made in ([], ["dacs=20"]))
    assert two["time_input_dacs_s"].to_numpy() == pytest.approx(one["time_input_dacs_s"].to_numpy() / 2)
    assert two["time_sram_s"].to_numpy() == pytest.approx(one["time_sram_s"].to_numpy())


@pytest.mark.parametrize("design", ACCELERATORS)
def test_a_sweep_gives_what_each_design_gives_alone(design: str) -> None:
    base = DesignPoint.named(design)
    space = sweep.default_space(base.accelerator)
    table = sweep.explore(ALEXNET, [base], space, points=64, seed=3)
    assert len(table) == 64
    for row in table.sample(4, random_state=0).to_dict("records"):
        alone = table_of(DesignPoint.named(design, choices=[f"{name}={row[name]!r}" for name in space]))
        for column in ("time_s", "energy_j", "area_mm2", "bits"):
            assert row[column] == pytest.approx(alone[column].iloc[-1]), column


def test_every_device_set_has_its_share_of_the_designs() -> None:
    bases = [DesignPoint.named("winograd", name) for name in ("moderate", "aggressive")]
    table = sweep.explore(ALEXNET, bases, {"tile": [1.0, 2.0], "batch": [1.0, 8.0]}, points=6, seed=0)
    assert table["device_set"].tolist() == ["moderate"] * 3 + ["aggressive"] * 3


def test_a_small_space_is_enumerated_whole() -> None:
    found = sweep.designs({"a": [1.0, 2.0], "b": [3.0, 4.0, 5.0]}, points=6, seed=0)
    assert sorted(zip(found["a"], found["b"], strict=True)) == [(a, b) for a in (1, 2) for b in (3, 4, 5)]
    sampled = sweep.designs({"a": [1.0, 2.0], "b": [3.0, 4.0, 5.0]}, points=5, seed=0)
    assert len(sampled["a"]) == 5
    again = sweep.designs({"a": [1.0, 2.0], "b": [3.0, 4.0, 5.0]}, points=5, seed=0)
    assert (sampled["b"] == again["b"]).all()


@given(arrays(float, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.integers(0, 6).map(float)))
@settings(max_examples=150, deadline=None)
def test_the_pareto_set_is_that_of_brute_force(costs: np.ndarray) -> None:
    beaten = [any((other <= row).all() and (other < row).any() for other in costs) for row in costs]
    assert sweep.not_dominated(costs).tolist() == [not x for x in beaten]


def run(*arguments: str) -> Exception | None:
    return CliRunner().invoke(app, list(arguments)).exception


def test_the_commands_write_whole_tables(tmp_path: Path) -> None:
    output = tmp_path / "front.csv"
    assert run("explore", "--output", str(output), "--points", "200", "--vary", "batch=5,50") is None
    front = read_csv(output, sweep.COLUMNS)
    assert set(front["design"]) == set(ACCELERATORS)
    assert set(front["batch"]) <= {5, 50}
    assert run("explore", "--output", str(output), "--design", "pcnna", "--points", "50", "--vary", "dacs=7") is None
    assert set(read_csv(output)["input_dacs"]) == {7}
    table = tmp_path / "estimate.csv"
    assert run("estimate", "--network", "resnet18", "--set", "batch=8", "--output", str(table)) is None
    # 20 convolutions, one linear layer, and the row of all.
    assert len(read_csv(table)) == 22
    convolutions = tmp_path / "convolutions.csv"
    assert run("estimate", "--network", "resnet18", "--scope", "convolutions", "--output", str(convolutions)) is None
    assert len(read_csv(convolutions)) == 21


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["estimate", "--design", "pcna"], "did you mean 'pcnna'"),
        (["estimate", "--set", "dacz=3"], "did you mean 'adcs'|did you mean 'dac"),
        (["estimate", "--set", "dacs"], "not of the form name=value"),
        (["estimate", "--set", "dacs=many"], "not a number"),
        (["estimate", "--set", "dacs=0"], "input_dacs is 0"),
        (["estimate", "--set", "batch=0"], "batch is 0"),
        (["estimate", "--set", "clock=-1"], "not negative"),
        (["estimate", "--set", "dacs=2.5"], "input_dacs is 2.5, but must be a whole number"),
        (["estimate", "--set", "batch=inf"], "batch is inf"),
        (["estimate", "--set", "bound_sram=2"], "bound_sram is 2, but must be 0"),
        (["estimate", "--set", "sram_access=0"], "sram_access is 0"),
        (["estimate", "--set", "laser_channel_power=0"], "laser_channel_power is 0"),
        (["estimate", "--devices", "moderate"], "lacks 'input_dacs', which PCNNA needs"),
        (["estimate", "--design", "winograd", "--set", "tile=2.5"], "tile is 2.5, but must be a whole number"),
        (["estimate", "--design", "winograd", "--set", "memory=0.5"], "memory is 0.5"),
        (["explore", "--output", "x.csv", "--vary", "bound_sram=0,1"], "bound_sram must be the same for all designs"),
        (["estimate", "--devices", "mederate"], "did you mean 'moderate'"),
        (["estimate", "--design", "winograd", "--set", "tile=7"], "tile 7 is impossible"),
        (["estimate", "--network", "alexnett"], "did you mean 'alexnet'"),
        (["estimate", "--input", "224y"], "SIDExSIDE"),
        (["estimate", "--input", "224"], "alexnet: the model does not run on an input of 224"),
        (["explore", "--output", "x.csv", "--vary", "dacs=a"], "NAME=VALUE,VALUE"),
        (["explore", "--output", "x.csv", "--vary", "what=1"], "unknown name 'what'"),
        (["explore", "--output", "x.csv", "--points", "10", "--least-bits", "20"], "no design reaches 20 bits"),
        (["simulate", "--output", "x.csv", "--cache", "0"], "the cache is 0 kb"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(arguments, words, tmp_path, monkeypatch) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    error = run(*arguments)
    assert isinstance(error, UserError)
    assert re.search(words, str(error)), error
    assert "\n" not in str(error)
    assert list(tmp_path.iterdir()) == []
