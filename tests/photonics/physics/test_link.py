from __future__ import annotations

import pytest

from lumoe.photonics.physics.link import largest_size, laser_power_w, received_power_dbm
from lumoe.photonics.physics.parameters import Physics, load_physics

# Penalties of the orders modulation-aggregation-weighting, aggregation-modulation-weighting and
# modulation-weighting-aggregation: Al-Qadasi et al., APL Photonics 7, 020902 (2022).
PENALTIES = (4.8, 5.8, 1.8)


@pytest.fixture
def physics() -> Physics:
    return load_physics("moderate")


@pytest.mark.parametrize(
    ("rate_ghz", "bits", "sizes"),
    [(1, 4, (43, 36, 72)), (5, 4, (21, 17, 39)), (1, 6, (12, 10, 23)), (10, 6, (2, 1, 4))],
)
def test_largest_size_table(physics: Physics, rate_ghz: float, bits: float, sizes: tuple[int, int, int]) -> None:
    for penalty, size in zip(PENALTIES, sizes, strict=True):
        link = physics.model_copy(update={"link_penalty": penalty})
        assert largest_size(link, bits=bits, rate_hz=rate_ghz * 1e9, laser_dbm=10) == size


def test_impossible_precision_has_no_size(physics: Physics) -> None:
    assert largest_size(physics, bits=8, rate_hz=10e9) == 0


def test_power_falls_with_size_and_follows_the_laser(physics: Physics) -> None:
    received = [received_power_dbm(physics, n) for n in (1, 2, 8, 32, 100)]
    assert received == sorted(received, reverse=True)
    assert received_power_dbm(physics, 8, laser_dbm=13) - received_power_dbm(physics, 8, laser_dbm=10) == pytest.approx(
        3
    )


def test_laser_power_is_electrical(physics: Physics) -> None:
    assert laser_power_w(physics, 4, laser_dbm=10) == pytest.approx(4 * 0.010 / physics.laser_wall_plug_efficiency)
