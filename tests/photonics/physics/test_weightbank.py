from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.photonics.physics import weightbank
from lumoe.photonics.physics.link import channel_capacity
from lumoe.photonics.physics.microring import Microring
from lumoe.photonics.physics.parameters import load_physics
from lumoe.photonics.physics.tuning import (
    compensate,
    drift_phase,
    heat,
    heater_settings,
    thermal_coupling,
    thermo_optic_power_w,
)
from lumoe.photonics.physics.weightbank import (
    WeightBank,
    attainable_bits,
    full_scale,
    lorentzian_crosstalk,
)


def ring_of(finesse: float, loss: float = 0.9995) -> Microring:
    return Microring.with_finesse(finesse, loss=loss, radius_m=5e-6, group_index=4.2)


def drawn(bank: WeightBank, banks: int, seed: int = 5) -> torch.Tensor:
    """Weights of many banks, uniform over the bank's full scale."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(banks, bank.channels, generator=generator, dtype=torch.float64) - 1) * bank.full_scale


def product_form(phases: torch.Tensor, bank: WeightBank) -> torch.Tensor:
    """The bank's definition, term by term: Σ_j T_d,j Π_{k<j} T_t,k − Π_j T_t,j at every channel."""
    result = torch.empty_like(phases)
    for i in range(len(phases)):
        detuned = [phases[j] - (i - j) * bank.channel_phase for j in range(len(phases))]
        drop, passed = 0.0, 1.0
        for phase in detuned:
            drop, passed = drop + passed * float(bank.ring.drop(phase)), passed * float(bank.ring.through(phase))
        result[i] = drop - passed
    return result


@given(rings=st.integers(1, 7), seed=st.integers(0, 1000))
def test_response_is_the_product_form(rings: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = WeightBank(ring_of(60), channels=8, spacing=4.0)
    phases = torch.rand(rings, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(bank.weights(phases), product_form(phases, bank), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("finesse", "published"), [(368, 108), (133, 39)])
def test_channel_counts_of_tait(finesse: float, published: int) -> None:
    # Tait et al., IEEE JSTQE 22, 5900214 (2016): 3 dB cross-weight penalty at 3.41 linewidths, rounded.
    assert round(channel_capacity(finesse, 3.41)) == published


@pytest.mark.parametrize(
    ("spacing", "nearest_db", "total", "bits"),
    [
        (3.41, -16.8, 0.070, 2.8),
        (5, -20, 0.033, 3.9),
        (8, -24.1, 0.013, 5.3),
        (10, -26, 0.0082, 5.9),
        (20, -32, 0.0020, 7.9),
    ],
)
def test_uncalibrated_lorentzian_crosstalk(spacing: float, nearest_db: float, total: float, bits: float) -> None:
    nearest, summed = lorentzian_crosstalk(spacing)
    assert 10 * math.log10(nearest) == pytest.approx(nearest_db, abs=0.1)
    assert summed == pytest.approx(total, rel=0.03)
    assert attainable_bits(summed) == pytest.approx(bits, abs=0.06)
    brute = 2 * sum(1 / (1 + (2 * k * spacing) ** 2) for k in range(1, 20_000))
    assert summed == pytest.approx(brute, rel=1e-2)


@pytest.mark.parametrize(("finesse", "spacing"), [(69, 3.41), (133, 3.41), (368, 3.41), (133, 5.0), (368, 10.0)])
def test_calibration_removes_the_crosstalk(finesse: float, spacing: float) -> None:
    ring = ring_of(finesse, loss=0.998 if finesse < 200 else 0.9995)
    bank = WeightBank(ring, channels=int(channel_capacity(finesse, spacing)), spacing=spacing, reach=0.7)
    generator = torch.Generator().manual_seed(1)
    target = (2 * torch.rand(50, bank.channels, generator=generator, dtype=torch.float64) - 1) * bank.full_scale
    left_alone = bank.weights(bank.isolated_phases(target)) - target
    calibrated = bank.weights(bank.calibrate(target, tolerance=1e-10)) - target
    assert float(left_alone.abs().max()) > 1e-3
    assert float(calibrated.abs().max()) < 1e-9


def test_calibration_in_single_precision_and_any_batch_shape() -> None:
    bank = WeightBank(ring_of(133), channels=24, spacing=4.0, reach=0.7)
    target = (2 * torch.rand(3, 5, 11, generator=torch.Generator().manual_seed(2)) - 1) * bank.full_scale
    phases = bank.calibrate(target)
    assert phases.shape == target.shape
    assert phases.dtype == torch.float32
    torch.testing.assert_close(bank.weights(phases), target, rtol=0, atol=2e-6)


def test_banks_do_not_mix() -> None:
    bank = WeightBank(ring_of(133), channels=9, spacing=4.0, reach=0.7)
    target = (2 * torch.rand(20, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1) * 0.5
    alone = torch.stack([bank.calibrate(row, tolerance=1e-11) for row in target])
    torch.testing.assert_close(bank.calibrate(target, tolerance=1e-11), alone, rtol=0, atol=1e-8)


def test_gradient_of_the_bank() -> None:
    bank = WeightBank(ring_of(60), channels=4, spacing=4.0)
    phases = torch.rand(2, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bank.weights, (phases,))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: WeightBank(ring_of(133), channels=40, spacing=3.41),
         "channels is 40, but a finesse of 133 holds at most 39"),
        (lambda: WeightBank(ring_of(133), channels=0, spacing=3.41), "channels is 0"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=-1), "spacing is -1"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=0), "spacing is 0"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4, reach=0.0), r"reach is 0, but must lie in \(0, 1\)"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4, reach=-0.5), "reach is -0.5"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4, reach=1.0), "reach is 1"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4, reach=1.5), "reach is 1.5"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).calibrate(torch.tensor([0.0, 0.9])),
         "weight is 0.9, but"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).calibrate(torch.tensor([math.nan])),
         "weight is nan"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).calibrate(torch.zeros(5)),
         "is 5, but must be .* 1 to 4"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).weights(torch.zeros(5)), "is 5, but must be .* to 4"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).weights(torch.zeros(3, 0)),
         "is 0, but must be .* 1 to 4"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).calibrate(torch.zeros(3, 0)),
         "is 0, but must be .* 1 to 4"),
        (lambda: channel_capacity(0.0, 3.41), "finesse is 0"),
        (lambda: channel_capacity(133, 0.0), "spacing is 0"),
        (lambda: lorentzian_crosstalk(0.0), "spacing is 0"),
        (lambda: attainable_bits(0.0), "error is 0"),
        (lambda: WeightBank(ring_of(133), channels=4, spacing=4).weights(torch.tensor([math.inf])), "phase is inf"),
        (lambda: Microring.with_finesse(500, loss=0.99, radius_m=5e-6, group_index=4.2),
         "finesse is 500, but .* less than 312.6"),
    ],
)  # fmt: skip
def test_impossible_banks_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@settings(deadline=None)
@given(rings=st.integers(1, 12), nearest=st.floats(0, 0.3))
def test_compensation_undoes_thermal_crosstalk(rings: int, nearest: float) -> None:
    wanted = torch.rand(3, rings, generator=torch.Generator().manual_seed(rings), dtype=torch.float64)
    coupling = thermal_coupling(rings, nearest)
    torch.testing.assert_close(heat(compensate(wanted, coupling), coupling), wanted, rtol=0, atol=1e-12)


def test_thermal_crosstalk_without_compensation_spoils_the_weights() -> None:
    bank = WeightBank(ring_of(133), channels=12, spacing=4.0, reach=0.7)
    target = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)
    phases = bank.calibrate(target, tolerance=1e-10)
    coupling = thermal_coupling(12, 0.05)
    assert float((bank.weights(heat(phases, coupling)) - target).abs().max()) > 0.01
    restored = bank.weights(heat(compensate(phases, coupling), coupling))
    torch.testing.assert_close(restored, target, rtol=0, atol=1e-9)


def test_tuning_power() -> None:
    physics = load_physics("moderate")
    # Half a free spectral range at 27.5 mW/FSR (CrossLight, DAC 2021).
    half = torch.tensor([[math.pi, 0.0]], dtype=torch.float64)
    assert float(thermo_optic_power_w(half, physics)) == pytest.approx(27.5e-3 / 2)
    # A ring fabricated just past its target goes nearly once around: heat only moves it one way.
    settings = heater_settings(torch.tensor([0.0]), torch.tensor([0.1]))
    assert float(settings) == pytest.approx(2 * math.pi - 0.1, rel=1e-6)
    # 80 pm/K over an FSR of 18.2 nm.
    assert drift_phase(1.0, physics) == pytest.approx(2 * math.pi * 80e-12 / physics.ring.free_spectral_range_m)


def test_a_bank_of_one_is_its_ring() -> None:
    bank = WeightBank(ring_of(60), channels=1, spacing=4.0)
    phases = torch.tensor([[0.0], [0.1], [math.pi]], dtype=torch.float64)
    torch.testing.assert_close(bank.weights(phases), bank.ring.weight(phases), rtol=0, atol=1e-12)


def test_channels_lie_their_spacing_apart() -> None:
    assert WeightBank(ring_of(60), channels=2, spacing=4.0).channel_phase == pytest.approx(2 * math.pi * 4 / 60)


def test_isolated_phases_give_each_ring_alone_its_weight() -> None:
    bank = WeightBank(ring_of(133), channels=9, spacing=4.0)
    target = drawn(bank, 20)
    torch.testing.assert_close(bank.ring.weight(bank.isolated_phases(target)), target, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("coupling", "loss", "least"),
    [
        # Without loss w reaches 1 at resonance, and 2 T_d - 1 with T_d = (0.19/1.81)^2 halfway to the next one.
        (0.9, 1.0, 1 - 2 * (0.19 / 1.81) ** 2),
        # With loss, resonance is the nearer end: P = 0.7695 and r1 - r2 a = 0.045.
        (0.9, 0.95, (0.19**2 * 0.95 - 0.045**2) / 0.2305**2),
    ],
)
def test_full_scale_is_the_reach_of_the_nearer_end(coupling: float, loss: float, least: float) -> None:
    ring = Microring(r1=coupling, r2=coupling, loss=loss, radius_m=5e-6, group_index=4.2)
    assert full_scale(ring, 0.5) == pytest.approx(0.5 * least)
    assert WeightBank(ring, channels=1, spacing=3.0).full_scale == pytest.approx(0.75 * least)


@pytest.mark.parametrize("sign", [-1, 1])
def test_weights_may_miss_the_full_scale_by_a_millionth(sign: int) -> None:
    bank = WeightBank(ring_of(133), channels=1, spacing=4.0)
    limit = torch.tensor([sign * (bank.full_scale + 1e-6)], dtype=torch.float64)
    assert torch.isfinite(bank.calibrate(limit)).all()
    with pytest.raises(ValueError, match=r"weight is .* but must lie in"):
        bank.calibrate(torch.nextafter(limit, limit * 2))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 4e-6)])
def test_calibration_stops_where_the_number_format_lets_it(dtype: torch.dtype, tolerance: float) -> None:
    bank = WeightBank(ring_of(133), channels=24, spacing=4.0, reach=0.7)
    for target in drawn(bank, 12).to(dtype):
        phases = bank.calibrate(target)
        assert float((bank.weights(phases) - target).abs().max()) < 1.5 * tolerance
        assert torch.equal(phases, bank.calibrate(target, tolerance=tolerance))


def test_calibration_goes_no_further_than_its_tolerance() -> None:
    bank = WeightBank(ring_of(133), channels=24, spacing=4.0, reach=0.7)
    target = drawn(bank, 12)
    error = float((bank.weights(bank.calibrate(target, tolerance=1e-4)) - target).abs().max())
    assert 1e-8 < error < 1e-4


@pytest.mark.parametrize(("finesse", "loss"), [(69, 0.998), (133, 0.998), (368, 0.9995)])
def test_eight_steps_calibrate_as_dense_a_bank_as_published(finesse: float, loss: float) -> None:
    ring = ring_of(finesse, loss)
    bank = WeightBank(ring, channels=int(channel_capacity(finesse, 3.41)), spacing=3.41, reach=0.7)
    target = drawn(bank, 50)
    assert float((bank.weights(bank.calibrate(target, iterations=8)) - target).abs().max()) < 1e-8


def test_no_step_at_all_leaves_the_rings_as_if_alone() -> None:
    bank = WeightBank(ring_of(133), channels=9, spacing=4.0)
    target = drawn(bank, 5)
    torch.testing.assert_close(bank.calibrate(target, iterations=0), bank.isolated_phases(target), rtol=0, atol=0)


def test_what_no_phases_reach_is_missed_without_wild_steps() -> None:
    # A step beyond -1 would come out at resonance, as the highest weight instead of the lowest: an error of up to 2.
    bank = WeightBank(ring_of(368), channels=12, spacing=3.41, reach=0.95)
    target = drawn(bank, 200, seed=1)
    error = float((bank.weights(bank.calibrate(target)) - target).abs().max())
    assert 0.1 < error < 0.5


@pytest.mark.parametrize(("elements", "banks"), [(1, 1), (9, 1), (9 * 4 + 8, 4)])
def test_banks_are_solved_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch, elements: int, banks: int) -> None:
    bank = WeightBank(ring_of(133), channels=9, spacing=4.0)
    target = drawn(bank, 6)
    # A part is done when its worst bank is: at a loose tolerance the phases tell which banks were solved together.
    alone = torch.cat([bank.calibrate(part, tolerance=1e-4) for part in target.split(banks)])
    monkeypatch.setattr(weightbank, "_CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(bank.calibrate(target, tolerance=1e-4), alone, rtol=0, atol=1e-12)
    monkeypatch.setattr(weightbank, "_CHUNK_ELEMENTS", 9 * 6)
    assert float((bank.calibrate(target, tolerance=1e-4) - alone).abs().max()) > 1e-9


@pytest.mark.parametrize(("finesse", "channels"), [(39 * 3.41 * (1 - 0.9e-4), 39), (39 * 3.41 * (1 - 1.1e-4), 38)])
def test_a_finesse_of_three_digits_loses_no_channel(finesse: float, channels: int) -> None:
    assert int(channel_capacity(finesse, 3.41)) == channels
    assert WeightBank(ring_of(finesse), channels=channels, spacing=3.41).channels == channels
    with pytest.raises(ValueError, match=f"holds at most {channels} channels 3.41 linewidths apart"):
        WeightBank(ring_of(finesse), channels=channels + 1, spacing=3.41)


def test_lorentzians_half_a_linewidth_apart() -> None:
    # The sum of 1/(1 + k^2) over all k but 0 is pi coth(pi) - 1.
    assert lorentzian_crosstalk(0.5) == pytest.approx((0.5, 2.153348094937))


@pytest.mark.parametrize(("error", "bits"), [(0.5, 0.0), (0.25, 1.0), (1 / 512, 8.0)])
def test_an_error_of_half_a_step_is_worth_its_bits(error: float, bits: float) -> None:
    assert attainable_bits(error) == bits


def test_how_to_calibrate_is_said_by_name() -> None:
    bank = WeightBank(ring_of(133), channels=2, spacing=4.0)
    with pytest.raises(TypeError):
        bank.calibrate(torch.zeros(2), 1e-9)  # type: ignore[misc]


def test_a_bank_cannot_be_changed_in_place() -> None:
    bank = WeightBank(ring_of(133), channels=2, spacing=4.0)
    with pytest.raises(FrozenInstanceError):
        bank.channels = 3  # type: ignore[misc]


def test_a_bank_of_undercoupled_rings_is_refused() -> None:
    ring = Microring(r1=0.999, r2=0.95, loss=0.98, radius_m=5e-6, group_index=4.2)
    assert ring.weight_range[1] < 0
    with pytest.raises(ValueError, match=r"highest weight of -0\.906, so no positive one: it is undercoupled"):
        WeightBank(ring, 4, 4.0, 0.7)
