"""What lasers, rings and detectors of many designs at once carry, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lumoe.photonics.accelerators import feasibility
from lumoe.photonics.devices import load_devices
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.link import launched_dbm, received_dbm, received_power_dbm
from lumoe.photonics.physics.parameters import load_physics

VALUES = load_devices("moderate").values()
PHYSICS = load_physics("moderate")


def test_many_designs_at_once_equal_one_at_a_time() -> None:
    channels, rates = np.array([1.0, 4.0, 21.0, 39.0]), np.array([1e9, 5e9, 10e9, 5e9])
    power = received_dbm(VALUES, channels, channels, VALUES["laser_power"])
    assert power == pytest.approx([received_power_dbm(PHYSICS, int(count)) for count in channels], abs=1e-12)
    bits = feasibility.effective_bits(VALUES, power, rates)
    alone = [
        Detector.of(PHYSICS).effective_bits(from_dbm(float(dbm)), float(rate))
        for dbm, rate in zip(power, rates, strict=True)
    ]
    assert bits == pytest.approx(alone, abs=1e-12)


def test_the_budget_of_one_link_by_hand() -> None:
    # 1 mW of electricity for each of 4 kernels, 10 % of it light: 0.4 mW. Splitting 4 ways: 6.02 dB and 2 splitters.
    values = {
        "laser_channel_power": 1e-3, "laser_wall_plug_efficiency": 0.1, "link_fibre_coupling_loss": 2.0,
        "link_modulator_loss": 1.0, "link_weight_loss": 0.5, "link_waveguide_loss": 3.0, "link_ring_pitch": 1e-4,
        "link_off_resonance_loss": 0.01, "link_splitter_loss": 0.25, "link_penalty": 4.8,
    }  # fmt: skip
    launched = launched_dbm(values, 4.0)
    assert launched == pytest.approx(10 * math.log10(0.4))
    losses = 2.0 + 1.0 + 0.5 + 3.0 * 0.01 * 8 + 2 * 0.01 * 7 + 10 * math.log10(4) + 0.25 * 2 + 4.8
    assert received_dbm(values, 8.0, 4.0, launched) == pytest.approx(launched - losses)


def test_sharing_a_laser_costs_only_the_splitters_excess_loss() -> None:
    ways = np.array([1.0, 2.0, 64.0])
    power = received_dbm(VALUES, 8.0, ways, launched_dbm(VALUES, ways))
    assert power - power[0] == pytest.approx(-VALUES["link_splitter_loss"] * np.log2(ways))


def test_bits_fall_with_rate_and_channels_and_rise_with_laser_power() -> None:
    bright = {**VALUES, "laser_channel_power": np.array([1e-4, 1e-3, 1e-2])}
    bits = feasibility.attainable_bits(bright, 16.0, 16.0, 5e9)
    assert (np.diff(bits) > 0).all()
    assert feasibility.attainable_bits(bright, 16.0, 16.0, 10e9)[2] < bits[2]
    assert feasibility.attainable_bits(bright, 16.0, 32.0, 5e9)[2] < bits[2]


def test_bits_are_those_of_the_sum_over_wavelengths() -> None:
    one = received_dbm(VALUES, 16.0, 1.0, launched_dbm({**VALUES, "laser_channel_power": 0.01}, 1.0))
    together = Detector.of(PHYSICS).effective_bits(16 * from_dbm(float(one)), 5e9)
    found = feasibility.attainable_bits({**VALUES, "laser_channel_power": 0.01}, 16.0, 1.0, 5e9)
    assert found == pytest.approx(together, abs=1e-9)


def test_more_channels_than_the_free_spectral_range_holds_carry_nothing() -> None:
    limit = feasibility.channel_limit(VALUES)
    assert limit == PHYSICS.channels
    bright = {**VALUES, "laser_channel_power": 1.0}
    assert feasibility.attainable_bits(bright, limit, 1.0, 1e9) > 0
    assert feasibility.attainable_bits(bright, limit + 1, 1.0, 1e9) == 0
