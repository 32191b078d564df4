"""The vectorised link budget against the scalar one, and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from lumoe.photonics.accelerators import feasibility
from lumoe.photonics.devices import load_devices
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.link import received_power_dbm
from lumoe.photonics.physics.parameters import load_physics

VALUES = load_devices("moderate").values()
PHYSICS = load_physics("moderate")


@pytest.mark.parametrize("channels", [1, 4, 21, 39])
@pytest.mark.parametrize("rate", [1e9, 5e9, 10e9])
def test_power_and_bits_are_those_of_the_scalar_link(channels: int, rate: float) -> None:
    power = feasibility.received_dbm(VALUES, channels, channels, VALUES["laser_power"])
    assert power == pytest.approx(received_power_dbm(PHYSICS, channels), abs=1e-9)
    bits = feasibility.effective_bits(VALUES, power, rate)
    assert bits == pytest.approx(Detector.of(PHYSICS).effective_bits(from_dbm(float(power)), rate), abs=1e-9)


def test_sharing_a_laser_costs_only_the_splitters_excess_loss() -> None:
    ways = np.array([1.0, 2.0, 64.0])
    power = feasibility.received_dbm(VALUES, 8.0, ways, feasibility.launched_dbm(VALUES, ways))
    assert power - power[0] == pytest.approx(-VALUES["link_splitter_loss"] * np.log2(ways))


def test_bits_fall_with_rate_and_channels_and_rise_with_laser_power() -> None:
    bright = {**VALUES, "laser_channel_power": np.array([1e-4, 1e-3, 1e-2])}
    bits = feasibility.attainable_bits(bright, 16.0, 16.0, 5e9)
    assert (np.diff(bits) > 0).all()
    assert feasibility.attainable_bits(bright, 16.0, 16.0, 10e9)[2] < bits[2]
    assert feasibility.attainable_bits(bright, 16.0, 32.0, 5e9)[2] < bits[2]


def test_bits_are_those_of_the_sum_over_wavelengths() -> None:
    one = feasibility.received_dbm(
        VALUES, 16.0, 1.0, feasibility.launched_dbm({**VALUES, "laser_channel_power": 0.01}, 1.0)
    )
    together = Detector.of(PHYSICS).effective_bits(16 * from_dbm(float(one)), 5e9)
    found = feasibility.attainable_bits({**VALUES, "laser_channel_power": 0.01}, 16.0, 1.0, 5e9)
    assert found == pytest.approx(together, abs=1e-9)


def test_more_channels_than_the_free_spectral_range_holds_carry_nothing() -> None:
    limit = feasibility.channel_limit(VALUES)
    assert limit == PHYSICS.channels
    bright = {**VALUES, "laser_channel_power": 1.0}
    assert feasibility.attainable_bits(bright, limit, 1.0, 1e9) > 0
    assert feasibility.attainable_bits(bright, limit + 1, 1.0, 1e9) == 0
