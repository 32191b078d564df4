from __future__ import annotations

import math

import pytest
from scipy.constants import Boltzmann, elementary_charge

from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.parameters import load_physics


@pytest.fixture
def detector() -> Detector:
    return Detector.of(load_physics("moderate"))


# Al-Qadasi et al., APL Photonics 7, 020902 (2022), eq. 8: required power at the photodiode, dBm.
@pytest.mark.parametrize(
    ("rate_ghz", "expected"),
    [
        (1, {1: -27.0, 2: -24.0, 4: -18.0, 6: -11.7, 8: -0.5}),
        (5, {1: -23.5, 2: -20.5, 4: -14.4, 6: -7.3, 8: math.inf}),
        (10, {1: -22.0, 2: -19.0, 4: -12.8, 6: -4.3, 8: math.inf}),
    ],
)
def test_required_power_table(detector: Detector, rate_ghz: float, expected: dict[int, float]) -> None:
    for bits, power in expected.items():
        assert detector.required_power_dbm(bits, rate_ghz * 1e9) == pytest.approx(power, abs=0.06)


@pytest.mark.parametrize(("rate_ghz", "bits"), [(1, 8.3), (5, 7.1), (10, 6.6)])
def test_intensity_noise_caps_the_bits(detector: Detector, rate_ghz: float, bits: float) -> None:
    assert detector.ceiling_bits(rate_ghz * 1e9) == pytest.approx(bits, abs=0.05)
    assert detector.effective_bits(1e3, rate_ghz * 1e9) < detector.ceiling_bits(rate_ghz * 1e9)


def test_variance_terms_one_by_one() -> None:
    shot = Detector(responsivity=1.0, dark_current=0.0, load=1e30, temperature=300, rin=-1000)
    assert shot.variance(1e-3, 1e9) == pytest.approx(2 * elementary_charge * 1e-3 * 1e9)
    thermal = Detector(responsivity=1.0, dark_current=0.0, load=50, temperature=300, rin=-1000)
    assert thermal.variance(0.0, 1e9) == pytest.approx(4 * Boltzmann * 300 / 50 * 1e9)


def balanced(detector: Detector, drop_w: float, through_w: float) -> float:
    """The variance of a balanced pair's current in 1 Hz, for the powers on its two photodiodes."""
    drop, through = detector.responsivity * drop_w, detector.responsivity * through_w
    noise = detector.balanced
    return float(noise.dark + noise.shot * (drop + through) + noise.intensity * (drop - through) ** 2)


def test_shared_laser_noise_cancels_on_a_balanced_pair(detector: Detector) -> None:
    quiet = Detector(**{**vars(detector), "rin": -1000.0})
    # The photodiodes' own noise adds up; of the laser's, only that of the difference is left.
    for drop, through in ((1e-3, 1e-3), (1e-3, 0.0), (0.0, 0.0), (2e-4, 7e-4)):
        own = quiet.variance(drop, 1.0) + quiet.variance(through, 1.0)
        shared = (detector.responsivity * (drop - through)) ** 2 * 10 ** (detector.rin / 10)
        assert balanced(detector, drop, through) == pytest.approx(own + shared, rel=1e-9)


def test_more_power_never_costs_bits(detector: Detector) -> None:
    bits = [detector.effective_bits(from_dbm(p), 5e9) for p in range(-40, 20)]
    assert bits == sorted(bits)


def test_impossible_detectors_are_refused() -> None:
    with pytest.raises(ValueError, match="detector load is 0, but must lie in"):
        Detector(responsivity=1.2, dark_current=0.0, load=0.0, temperature=300, rin=-140)
    with pytest.raises(ValueError, match="detector rin is nan, but every element must be finite"):
        Detector(responsivity=1.2, dark_current=0.0, load=50.0, temperature=300, rin=math.nan)
    with pytest.raises(ValueError, match="received power is -1"):
        Detector.of(load_physics("moderate")).effective_bits(-1.0, 1e9)
