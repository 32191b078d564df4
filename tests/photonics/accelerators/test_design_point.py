"""A design point: what is chosen and what is not, one design and many, and what cannot be built."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lumoe.errors import UserError
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import ACCELERATORS, PCNNA, WINOGRAD
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes

ALEXNET = convolution_shapes(load_network("alexnet").convolutions())
VGG = convolution_shapes(load_network("vgg16").convolutions())


def said(point: DesignPoint, shapes=ALEXNET) -> list[str]:
    return point.warnings(point.evaluate(shapes))


def test_what_is_not_chosen_is_as_the_accelerator_has_it() -> None:
    point = DesignPoint(PCNNA, load_devices("pcnna"), {"batch": 8.0})
    # Rings of finesse 133 at 3.41 linewidths tell 39 wavelengths apart.
    assert point.choices["channels"] == 39
    assert point.choices == {
        **{"batch": 8.0, "channels": 39.0, "in_time": 0.0, "adcs": np.inf},
        **dict.fromkeys(("bound_weight_dacs", "bound_settling", "bound_adcs", "bound_sram", "bound_dram"), 1.0),
    }
    assert DesignPoint.named("winograd").choices == {"tile": 2, "batch": 1, "analog_inverse": 1, "memory": 1}


def test_names_are_sorted_into_choices_and_devices() -> None:
    point = DesignPoint.named("pcnna", choices=["dacs=20", "batch=4", "clock=1"])
    assert (point.accelerator, point.devices.name, point.choices["batch"]) == (PCNNA, "pcnna", 4)
    assert (point.devices.si("input_dacs"), point.devices.si("clock")) == (20, 1e9)
    assert DesignPoint.named("winograd", "aggressive").devices.name == "aggressive"


def test_a_point_cannot_be_changed_in_place_and_knows_its_choices() -> None:
    point = DesignPoint.named("winograd")
    with pytest.raises(FrozenInstanceError):
        point.devices = load_devices("pcnna")  # type: ignore[misc]
    with pytest.raises(UserError, match="winograd has no choice 'tiel'; did you mean 'tile'"):
        DesignPoint(WINOGRAD, load_devices("moderate"), {"tiel": 2.0})
    with pytest.raises(UserError, match=r"lacks '.+', which the link budget needs"):
        DesignPoint(PCNNA, load_devices("physics"))


@pytest.mark.parametrize("design", ACCELERATORS)
def test_many_designs_at_once_equal_one_at_a_time(design: str) -> None:
    levels = {"batch": np.array([1.0, 4.0, 16.0]), "clock": np.array([1.0, 2.0, 5.0])}
    many = DesignPoint.named(design).sweep(ALEXNET, levels)
    assert many.time_s.shape == (5, 3)
    for index in range(3):
        made = [f"{name}={column[index]}" for name, column in levels.items()]
        alone = DesignPoint.named(design, choices=made).evaluate(ALEXNET)
        assert many.total_time_s[index] == pytest.approx(alone.total_time_s[0], rel=1e-12)
        assert many.total_energy_j[index] == pytest.approx(alone.total_energy_j[0], rel=1e-12)
        assert many.bits[:, index] == pytest.approx(alone.bits[:, 0], rel=1e-12)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter 'clok'; did you mean 'clock'"):
        DesignPoint.named("pcnna").sweep(ALEXNET, {"clok": np.array([1.0])})


def test_what_cannot_be_built_is_said() -> None:
    weak = said(DesignPoint.named("pcnna"))
    assert len(weak) == 1
    assert "raise laser_channel_power" in weak[0]
    assert "200 wavelengths do not fit" in said(DesignPoint.named("pcnna", choices=["channels=200"]))[0]
    bright = DesignPoint.named("pcnna", choices=["laser_channel_power=100", "clock=1", "reticle_area=900"])
    assert said(bright) == []


def test_what_does_not_fit_on_one_chip_is_said() -> None:
    # 2.36 million rings of 25 um x 25 um are 1475 mm2.
    words = "1509 mm2 do not fit on one chip: a lithography field has 858 mm2"
    assert words in said(DesignPoint.named("pcnna"), VGG)


def test_a_large_tile_is_said_to_cost_bits() -> None:
    direct, tiled = (DesignPoint.named("winograd", "conservative", [f"tile={tile}"]) for tile in (1, 4))
    lost = direct.evaluate(ALEXNET).least_bits - tiled.evaluate(ALEXNET).least_bits
    assert lost[0] > 1.5
    assert not any("an inverse transform amplifies" in words for words in said(direct))
    assert any("an inverse transform amplifies" in words for words in said(tiled))
