"""Estimates and sweeps: sums that close, points that agree, Pareto sets against brute force, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from lumoe.cli.photonics.design import app
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.photonics.accelerators.choices import apply_choices
from lumoe.photonics.accelerators.registry import ACCELERATORS, accelerator
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.load import load_network
from lumoe.photonics.studies import explore as sweep
from lumoe.photonics.studies.estimate import estimate_table, warnings

ALEXNET = load_network("alexnet")


@pytest.mark.parametrize("design", ACCELERATORS)
@pytest.mark.parametrize("network", ["alexnet", "mobilenet_v2"])
def test_components_and_layers_add_up(design: str, network: str) -> None:
    chosen = accelerator(design)
    table = estimate_table(load_network(network), chosen, load_devices(chosen.devices), {})
    layers, whole = table.iloc[:-1], table.iloc[-1]
    assert table.filter(regex="^energy_.+_j$").sum(axis=1).to_numpy() == pytest.approx(table["energy_j"].to_numpy())
    for column in ("macs", "weights", "time_s", "energy_j"):
        assert layers[column].sum() == pytest.approx(whole[column])
    assert (table["power_w"] * table["time_s"]).to_numpy() == pytest.approx(table["energy_j"].to_numpy())
    assert whole["area_mm2"] >= layers["area_mm2"].max() * (1 - 1e-12)
    assert whole["bits"] == layers["bits"].min()


def test_twice_the_converters_halve_the_input_time_and_nothing_else() -> None:
    chosen = accelerator("pcnna")
    devices = load_devices("pcnna")
    twice, _ = apply_choices(["dacs=20"], devices, list(chosen.choices))
    one, two = (estimate_table(ALEXNET, chosen, found, {}).set_index("layer") for found in (devices, twice))
    assert two["time_input_dacs_s"].to_numpy() == pytest.approx(one["time_input_dacs_s"].to_numpy() / 2)
    assert two["time_sram_s"].to_numpy() == pytest.approx(one["time_sram_s"].to_numpy())


def test_what_cannot_be_built_is_said() -> None:
    chosen = accelerator("pcnna")
    devices = load_devices("pcnna")
    weak = warnings(estimate_table(ALEXNET, chosen, devices, {}), chosen, devices, {})
    assert len(weak) == 1
    assert "raise laser_channel_power" in weak[0]
    crowded = {"channels": 200.0}
    said = warnings(estimate_table(ALEXNET, chosen, devices, crowded), chosen, devices, crowded)
    assert "200 wavelengths do not fit" in said[0]
    bright, _ = apply_choices(["laser_channel_power=100", "clock=1", "reticle_area=900"], devices, [])
    assert warnings(estimate_table(ALEXNET, chosen, bright, {}), chosen, bright, {}) == []


def test_what_does_not_fit_on_one_chip_is_said() -> None:
    chosen, devices = accelerator("pcnna"), load_devices("pcnna")
    vgg = warnings(estimate_table(load_network("vgg16"), chosen, devices, {}), chosen, devices, {})
    # 2.36 million rings of 25 um x 25 um are 1475 mm2.
    assert any("mm2 do not fit on one chip: a lithography field has 858 mm2" in said for said in vgg)


def test_a_large_tile_is_said_to_cost_bits() -> None:
    chosen, devices = accelerator("winograd"), load_devices("conservative")
    tiles = {tile: estimate_table(ALEXNET, chosen, devices, {"tile": tile}) for tile in (1.0, 4.0)}
    assert tiles[1.0]["bits"].iloc[-1] - tiles[4.0]["bits"].iloc[-1] > 1.5
    assert not any(
        "an inverse transform amplifies" in said for said in warnings(tiles[1.0], chosen, devices, {"tile": 1.0})
    )
    assert any(
        "an inverse transform amplifies" in said for said in warnings(tiles[4.0], chosen, devices, {"tile": 4.0})
    )


@pytest.mark.parametrize("design", ACCELERATORS)
def test_a_sweep_gives_what_each_design_gives_alone(design: str) -> None:
    chosen = accelerator(design)
    devices = load_devices(chosen.devices)
    space = sweep.default_space(chosen)
    table = sweep.explore(ALEXNET, chosen, [devices], space, points=64, seed=3)
    assert len(table) == 64
    for row in table.sample(4, random_state=0).to_dict("records"):
        levels = {name: row[name] for name in space}
        changed = devices.replace({name: x for name, x in levels.items() if name not in chosen.choices})
        alone = estimate_table(ALEXNET, chosen, changed, {k: v for k, v in levels.items() if k in chosen.choices})
        for column in ("time_s", "energy_j", "area_mm2", "bits"):
            assert row[column] == pytest.approx(alone[column].iloc[-1]), column


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
    assert len(read_csv(table)) == 21


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
        (["estimate", "--input", "224"], "CHANNELSxHEIGHTxWIDTH"),
        (["explore", "--output", "x.csv", "--vary", "dacs=a"], "NAME=VALUE,VALUE"),
        (["explore", "--output", "x.csv", "--vary", "what=1"], "unknown name 'what'"),
        (["explore", "--output", "x.csv", "--points", "10", "--least-bits", "20"], "no design reaches 20 bits"),
        (["simulate", "--output", "x.csv", "--cache", "0"], "--cache is 0"),
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
