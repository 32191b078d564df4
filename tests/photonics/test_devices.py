"""Device sets: what ships is whole and sourced, and what a user writes is checked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lumoe.errors import UserError
from lumoe.photonics.devices import UNITS, Parameter, device_set_names, load_devices


def parameter(**changes: object) -> dict[str, object]:
    return {"value": 2, "unit": "pJ", "source": "a paper", "confidence": "read", **changes}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", device_set_names())
def test_every_shipped_set_is_sourced_and_bounded(name: str) -> None:
    devices = load_devices(name)
    assert devices.description
    for key, found in devices.parameters.items():
        assert len(found.source) > 5, key
        assert math.isfinite(found.si), key
        if found.confidence == "assumed":
            low, high = found.range_si or (math.nan, math.nan)
            assert low <= found.si <= high, key


@pytest.mark.parametrize("name", ["conservative", "moderate", "aggressive"])
def test_a_set_inherits_what_all_share(name: str) -> None:
    assert load_devices(name).si("photodiode_responsivity") == load_devices("common").si("photodiode_responsivity")


def test_the_three_sets_are_ordered() -> None:
    sets = [load_devices(name) for name in ("conservative", "moderate", "aggressive")]
    for name in ("dac_energy", "ring_power", "modulator_power", "tia_energy", "adc_fom"):
        worst, middle, best = (devices.si(name) for devices in sets)
        assert worst > middle > best, name


@pytest.mark.parametrize(
    ("value", "unit", "si"),
    [(3, "pJ", 3e-12), (4, "uW/nm", 4e3), (64, "pJ/64b", 64e-12 / 64), (5, "GS/s", 5e9), (128, "kb", 128e3),
     (410, "um2", 410e-12)],
)  # fmt: skip
def test_units_become_si(value: float, unit: str, si: float) -> None:
    assert Parameter.model_validate(parameter(value=value, unit=unit)).si == pytest.approx(si)


def test_replace_takes_the_parameters_own_unit_and_widens_the_range() -> None:
    devices = load_devices("moderate").replace({"clock": 20})
    assert devices.si("clock") == 20e9
    assert devices["clock"].range_si == (1e9, 20e9)
    assert devices["clock"].source == "set by the user"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_replace_refuses_what_cannot_be(value: float) -> None:
    with pytest.raises(UserError, match="clock"):
        load_devices("moderate").replace({"clock": value})


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'moderate'"):
        load_devices("moderat")
    with pytest.raises(UserError, match="did you mean 'clock'"):
        load_devices("moderate").si("clok")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("value: 1, unit: furlong, source: paper, confidence: read", "unknown unit 'furlong'"),
        ("value: 1, unit: pJ, source: paper, confidence: assumed", "needs its range"),
        ("value: 1, unit: pJ, source: paper, confidence: assumed, low: 2, high: 3", "outside its own range"),
        ("value: 1, unit: pJ, source: paper, confidence: read, low: 1", "go together"),
        ("value: .nan, unit: pJ, source: paper, confidence: read", "finite"),
        ("value: 1, unit: pJ, source: paper, confidence: sure", "confidence"),
        ("value: 1, unit: pJ, confidence: read", "source"),
    ],
)
def test_an_ill_formed_parameter_is_named(tmp_path: Path, fields: str, said: str) -> None:
    path = write(tmp_path, f"description: x\nparameters:\n  energy: {{{fields}}}\n")
    with pytest.raises(UserError, match="energy") as caught:
        load_devices(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "not a device set"),
        ("description: x", "not a device set"),
        ("parameters: {}\nbasis: common", "did you mean 'base'"),
        ("parameters: {}\nbase: comon", "did you mean 'common'"),
        ("parameters: {\n", "not YAML"),
    ],
)
def test_an_ill_formed_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_devices(write(tmp_path, text))
    assert said in str(caught.value)


def test_bases_that_go_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"description: x\nbase: {path}\nparameters: {{}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="leads back to itself"):
        load_devices(path)


def test_logarithmic_units_are_not_scaled() -> None:
    assert {unit for unit in UNITS if unit.startswith("dB")} <= {unit for unit, factor in UNITS.items() if factor == 1}
