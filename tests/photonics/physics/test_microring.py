from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sax_ring import add_drop_circuit, spectrum

from lumoe.photonics.physics.microring import (
    Microring,
    drop,
    finesse,
    free_spectral_range,
    half_phase_sine,
    phase_of_weight,
    product_of_finesse,
    round_trip_phase,
    through,
    weight,
    weight_range,
)

coupling = st.floats(0.5, 0.999)
loss = st.floats(0.8, 1.0)

# A poor ring whose numbers are short: P = 0.36, K = 0.19 * 0.36 * 0.5 = 0.0342, (r2 a)^2 + r1^2 = 0.97; 10 um around.
POOR = {"r1": 0.9, "r2": 0.8, "loss": 0.5}
POOR_RING = Microring(**POOR, radius_m=10e-6 / (2 * math.pi), group_index=4.5, effective_index=2.4, wavelength_m=1.5e-6)


@pytest.fixture
def example() -> Microring:
    return Microring(r1=0.98, r2=0.98, loss=0.995, radius_m=5e-6, group_index=4.2)


def test_worked_example(example: Microring) -> None:
    # R 5 µm, r 0.98, a 0.995, n_g 4.2 at 1550 nm, by the forms of Bogaerts et al. 2012.
    assert example.free_spectral_range_m == pytest.approx(18.2e-9, rel=2e-3)
    assert example.linewidth_m == pytest.approx(0.263e-9, rel=2e-3)
    assert example.finesse == pytest.approx(69, rel=5e-3)
    resonance = torch.zeros((), dtype=torch.float64)
    assert float(example.drop(resonance)) == pytest.approx(0.791, abs=5e-4)
    assert float(example.through(resonance)) == pytest.approx(0.012, abs=5e-4)
    assert example.weight_range == pytest.approx((-0.999, 0.779), abs=5e-4)


@given(r1=coupling, r2=coupling, a=loss, phase=st.floats(-10, 10))
def test_a_passive_ring_creates_no_light(r1: float, r2: float, a: float, phase: float) -> None:
    phi = torch.tensor(phase, dtype=torch.float64)
    t, d = (float(port(phi, r1=r1, r2=r2, loss=a)) for port in (through, drop))
    assert t >= -1e-12
    assert d >= 0
    assert t + d <= 1 + 1e-12


@given(r1=coupling, r2=coupling, phase=st.floats(-10, 10))
def test_a_lossless_ring_keeps_all_light(r1: float, r2: float, phase: float) -> None:
    phi = torch.tensor(phase, dtype=torch.float64)
    assert float(through(phi, r1=r1, r2=r2, loss=1.0) + drop(phi, r1=r1, r2=r2, loss=1.0)) == pytest.approx(1, abs=1e-9)


@given(r2=coupling, a=loss)
def test_critical_coupling_extinguishes_the_through_port(r2: float, a: float) -> None:
    assert float(through(torch.zeros(1, dtype=torch.float64), r1=r2 * a, r2=r2, loss=a)) == pytest.approx(0, abs=1e-10)


@given(r1=coupling, r2=coupling, a=loss, phase=st.floats(1e-3, math.pi - 1e-3))
def test_weight_round_trip(r1: float, r2: float, a: float, phase: float) -> None:
    phi = torch.tensor([phase], dtype=torch.float64)
    back = phase_of_weight(weight(phi, r1=r1, r2=r2, loss=a), r1=r1, r2=r2, loss=a)
    assert float(back) == pytest.approx(phase, abs=1e-6)


def test_lorentzian_near_resonance(example: Microring) -> None:
    linewidths = torch.linspace(-2, 2, 41, dtype=torch.float64)
    exact = example.drop(2 * math.pi * linewidths / example.finesse)
    lorentzian = float(example.drop(torch.zeros(()))) / (1 + (2 * linewidths) ** 2)
    torch.testing.assert_close(exact, lorentzian, rtol=5e-3, atol=0)


def test_half_maximum_is_half_a_linewidth_off(example: Microring) -> None:
    peak = float(example.drop(torch.zeros((), dtype=torch.float64)))
    half = float(example.drop(torch.tensor(math.pi / example.finesse, dtype=torch.float64)))
    assert half == pytest.approx(peak / 2, rel=1e-3)


def test_gradients(example: Microring) -> None:
    phase = torch.linspace(0.1, 3, 7, dtype=torch.float64, requires_grad=True)
    r1 = torch.full((7,), 0.95, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, r: weight(p, r1=r, r2=0.97, loss=0.99), (phase, r1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r1": 1.0}, r"r1 is 1, but must lie in \(0, 1\)"),
        ({"r2": -0.1}, r"r2 is -0.1"),
        ({"r1": math.nan}, r"r1 is nan"),
        ({"loss": 1.01}, r"loss\) is 1.01, but must lie in \[0, 1\]"),
        ({"radius_m": 0.0}, r"radius_m is 0"),
    ],
)
def test_impossible_rings_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Microring(**{"r1": 0.98, "r2": 0.98, "loss": 0.995, "radius_m": 5e-6, "group_index": 4.2, **change})


@pytest.mark.parametrize("target", [0.9, -1.0, math.nan])
def test_a_weight_outside_the_range_is_refused(example: Microring, target: float) -> None:
    with pytest.raises(ValueError, match=r"weight is .* must lie in \[-0.999083, 0.779244\]"):
        example.phase_of_weight(torch.tensor([0.1, target], dtype=torch.float64))


@pytest.mark.parametrize("function", [through, drop, weight])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r1": 1.0}, r"r1 is 1, but must lie in \(0, 1\)"),
        ({"r2": torch.tensor([0.5, -0.1])}, r"r2 is -0.1, but must lie in \(0, 1\)"),
        ({"loss": 0.0}, r"loss\) is 0, but must lie in \(0, inf\)"),
        ({"loss": 1.5}, r"loss\) is 1.5, but must lie in \[0, 1\]"),
        ({"phase": torch.tensor([0.0, math.nan])}, r"phase is nan, but every element must be finite"),
    ],
)
def test_ports_refuse_what_no_ring_has(function, change: dict[str, object], words: str) -> None:
    arguments = {"phase": torch.zeros(2), "r1": 0.9, "r2": 0.9, "loss": 0.99, **change}
    with pytest.raises(ValueError, match=words):
        function(arguments.pop("phase"), **arguments)


def test_sizes_that_no_ring_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group_index is 0, but must lie in \(0, inf\)"):
        free_spectral_range(wavelength_m=1.55e-6, radius_m=5e-6, group_index=0.0)
    with pytest.raises(ValueError, match=r"r2 is 1\.2"):
        finesse(r1=0.9, r2=1.2, loss=0.99)
    with pytest.raises(ValueError, match="wavelength_m is -1"):
        round_trip_phase(
            wavelength_m=torch.tensor([-1.0]), radius_m=5e-6, effective_index=2.4, group_index=4.2, centre_m=1.55e-6
        )
    with pytest.raises(ValueError, match=r"loss\) is 2"):
        Microring.with_finesse(100, loss=2.0, radius_m=5e-6, group_index=4.2)


# D = 1 + 0.36^2 - 0.72 cos(phase), T_t = (0.97 - 0.72 cos(phase)) / D, T_d = 0.0342 / D.
@pytest.mark.parametrize(
    ("phase", "passed", "dropped"),
    [
        (0.0, 0.25 / 0.4096, 0.0342 / 0.4096),
        (math.pi / 3, 0.61 / 0.7696, 0.0342 / 0.7696),
        (math.pi / 2, 0.97 / 1.1296, 0.0342 / 1.1296),
        (math.pi, 1.69 / 1.8496, 0.0342 / 1.8496),
    ],
)
def test_ports_by_hand(phase: float, passed: float, dropped: float) -> None:
    phi = torch.tensor(phase, dtype=torch.float64)
    ports = [float(port(phi)) for port in (POOR_RING.through, POOR_RING.drop, POOR_RING.weight)]
    assert ports == pytest.approx([passed, dropped, dropped - passed], rel=1e-12)
    target = torch.tensor(dropped - passed, dtype=torch.float64)
    assert float(POOR_RING.phase_of_weight(target)) == pytest.approx(phase, abs=1e-7)
    assert float(half_phase_sine(target, **POOR)) == pytest.approx(math.sin(phase / 2), abs=1e-7)


def test_the_range_of_weights_by_hand() -> None:
    lowest, highest = (0.0342 - 1.69) / 1.8496, (0.0342 - 0.25) / 0.4096
    assert weight_range(**POOR) == pytest.approx((lowest, highest), rel=1e-12)
    assert POOR_RING.weight_range == weight_range(**POOR)


def test_widths_by_hand() -> None:
    assert POOR_RING.product == pytest.approx(0.36)
    assert POOR_RING.finesse == pytest.approx(math.pi * 0.6 / 0.64)
    # 1.5 um squared over 4.5 x 10 um.
    assert POOR_RING.free_spectral_range_m == pytest.approx(50e-9, rel=1e-9, abs=0)
    assert POOR_RING.linewidth_m == pytest.approx(50e-9 * 0.64 / (math.pi * 0.6), rel=1e-9, abs=0)


# n_eff falls by 0.14 from 2.4 in 100 nm: (4.5 - 2.4) / 1.5 um.
@pytest.mark.parametrize(
    ("wavelength_m", "turns"), [(1.4e-6, 10 * 2.54 / 1.4), (1.5e-6, 16.0), (1.6e-6, 14.125), (2e-6, 8.5)]
)
def test_the_phase_by_hand(wavelength_m: float, turns: float) -> None:
    phase = POOR_RING.phase(torch.tensor(wavelength_m, dtype=torch.float64))
    assert float(phase) == pytest.approx(2 * math.pi * turns, rel=1e-12)


@pytest.mark.parametrize(("wavelength_m", "cosine"), [(1.5e-6, 1.0), (1.6e-6, math.sqrt(0.5)), (2e-6, -1.0)])
def test_the_spectrum_by_hand(wavelength_m: float, cosine: float) -> None:
    ports = POOR_RING.spectrum(torch.tensor([wavelength_m], dtype=torch.float64))
    denominator = 1.1296 - 0.72 * cosine
    by_hand = ((0.97 - 0.72 * cosine) / denominator, 0.0342 / denominator)
    assert tuple(map(float, ports)) == pytest.approx(by_hand, rel=1e-9)


def test_weights_a_billionth_outside_the_range_are_at_its_ends() -> None:
    low, high = POOR_RING.weight_range
    ends = POOR_RING.phase_of_weight(torch.tensor([low - 0.9e-9, high + 0.9e-9], dtype=torch.float64))
    assert ends.tolist() == [math.pi, 0.0]
    for target in (low - 1.1e-9, high + 1.1e-9):
        with pytest.raises(ValueError, match=r"weight is .* but must lie in"):
            POOR_RING.phase_of_weight(torch.tensor([target], dtype=torch.float64))


@pytest.mark.parametrize("product", [0.01, 0.36, 0.81, 0.9801])
def test_a_finesse_tells_its_product(product: float) -> None:
    root = math.sqrt(product)
    assert product_of_finesse(math.pi * root / (1 - product)) == pytest.approx(product)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_finesse_that_no_ring_has_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"finesse is {value:g}, but must lie in \(0, inf\)"):
        product_of_finesse(value)


def test_a_ring_of_a_finesse_has_equal_couplings() -> None:
    ring = Microring.with_finesse(math.pi * 0.6 / 0.64, loss=0.9, radius_m=7e-6, group_index=4.1, wavelength_m=1.31e-6)
    assert (ring.r1, ring.r2) == pytest.approx((math.sqrt(0.4), math.sqrt(0.4)))
    assert (ring.loss, ring.radius_m, ring.group_index, ring.wavelength_m) == (0.9, 7e-6, 4.1, 1.31e-6)


def test_rings_are_silicons_in_the_c_band_by_default() -> None:
    ring = Microring(**POOR, radius_m=5e-6, group_index=4.2)
    assert (ring.effective_index, ring.wavelength_m) == (2.4, 1.55e-6)
    assert Microring.with_finesse(10, loss=0.9, radius_m=5e-6, group_index=4.2).wavelength_m == 1.55e-6


def test_the_finesse_that_the_loss_just_forbids_is_refused() -> None:
    # Couplings of exactly 1 would make the product of the finesse, all of it loss.
    with pytest.raises(ValueError, match=r"finesse is 100, but .* of 0.969074 allows less than 100$"):
        Microring.with_finesse(100, loss=product_of_finesse(100), radius_m=5e-6, group_index=4.2)
    # Without loss only rounding bounds it.
    with pytest.raises(ValueError, match="a round-trip amplitude of 1 allows less than inf"):
        Microring.with_finesse(1e20, loss=1.0, radius_m=5e-6, group_index=4.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r1": 0.0}, r"r1 is 0, but must lie in \(0, 1\)"),
        ({"r2": 0.0}, r"r2 is 0, but must lie in \(0, 1\)"),
        ({"r2": 1.0}, r"r2 is 1, but must lie in \(0, 1\)"),
        ({"loss": 0.0}, r"loss\) is 0, but must lie in \(0, inf\)"),
        ({"group_index": 0.0}, "group_index is 0"),
        ({"effective_index": 0.0}, "effective_index is 0"),
        ({"wavelength_m": math.inf}, "wavelength_m is inf"),
    ],
)
def test_limits_of_a_ring(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Microring(**{"r1": 0.98, "r2": 0.98, "loss": 1.0, "radius_m": 5e-6, "group_index": 4.2, **change})


@pytest.mark.parametrize("function", [through, drop, weight, half_phase_sine, phase_of_weight])
def test_couplings_and_loss_are_told_apart_by_name(function) -> None:
    with pytest.raises(TypeError):
        function(torch.zeros(1), 0.9, 0.8, 0.5)


def test_a_ring_of_a_finesse_is_described_by_name() -> None:
    with pytest.raises(TypeError):
        Microring.with_finesse(10, 0.9, 5e-6, 4.2)  # type: ignore[misc]


def test_a_ring_cannot_be_changed_in_place(example: Microring) -> None:
    with pytest.raises(FrozenInstanceError):
        example.r1 = 0.5  # type: ignore[misc]


@pytest.fixture(scope="module")
def circuit():
    return add_drop_circuit()


def test_matches_circuit_solver_on_random_rings(circuit) -> None:
    generator = np.random.default_rng(7)
    wavelength = np.linspace(1.53e-6, 1.57e-6, 401)
    for _ in range(12):
        r1, r2 = generator.uniform(0.6, 0.995, 2)
        ring = Microring(
            r1=r1,
            r2=r2,
            loss=generator.uniform(0.85, 1.0),
            radius_m=generator.uniform(3e-6, 20e-6),
            group_index=generator.uniform(3.8, 4.5),
            effective_index=generator.uniform(2.2, 2.8),
        )
        expected_through, expected_drop = spectrum(circuit, ring, wavelength)
        got_through, got_drop = ring.spectrum(torch.from_numpy(wavelength))
        np.testing.assert_allclose(got_through.numpy(), expected_through, rtol=0, atol=1e-9)
        np.testing.assert_allclose(got_drop.numpy(), expected_drop, rtol=0, atol=1e-9)
        phase = ring.phase(torch.from_numpy(wavelength))
        torch.testing.assert_close(ring.through(phase), got_through, rtol=0, atol=1e-12)
        torch.testing.assert_close(ring.drop(phase), got_drop, rtol=0, atol=1e-12)
