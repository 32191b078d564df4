"""Tables of the physics alone: ring spectra, bits of a detector, sizes of a link, errors of weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.link import channel_capacity, largest_size, laser_power_w, received_power_dbm
from lumoe.photonics.physics.parameters import Physics
from lumoe.photonics.physics.tuning import drift_phase
from lumoe.photonics.physics.weightbank import WeightBank, attainable_bits, lorentzian_crosstalk
from lumoe.progress import track

_FLOOR = 1e-8


def ring_spectrum(physics: Physics, *, linewidths: float = 6.0, points: int = 601) -> pd.DataFrame:
    """Return through, drop and weight of the device set's ring around resonance."""
    ring = physics.ring
    detuning = torch.linspace(-linewidths, linewidths, points, dtype=torch.float64)
    phase = detuning * (2 * np.pi / ring.finesse)
    through, drop = ring.through(phase), ring.drop(phase)
    return pd.DataFrame(
        {
            "detuning_linewidths": detuning.numpy(),
            "detuning_m": (detuning * ring.linewidth_m).numpy(),
            "through": through.numpy(),
            "drop": drop.numpy(),
            "weight": (drop - through).numpy(),
            "basis": "modelled",
        }
    )


def detector_bits(
    physics: Physics, rates_hz: tuple[float, ...] = (1e9, 2e9, 5e9, 10e9), step_db: float = 0.5
) -> pd.DataFrame:
    """Return the effective bits of one photodiode over received power and data rate."""
    detector = Detector.of(physics)
    powers = np.arange(-30.0, 10.0 + step_db, step_db)
    return pd.DataFrame(
        [
            {
                "rate_hz": rate,
                "received_power_dbm": power,
                "effective_bits": detector.effective_bits(from_dbm(power), rate),
                "ceiling_bits": detector.ceiling_bits(rate),
                "basis": "modelled",
            }
            for rate in rates_hz
            for power in powers
        ]
    )


def link_sizes(
    physics: Physics, bits: tuple[float, ...] = (2, 4, 6, 8), rates_hz: tuple[float, ...] = (1e9, 5e9, 10e9)
) -> pd.DataFrame:
    """Return the largest N = M, the power that arrives there and the lasers' electrical power."""
    rows = []
    for rate in rates_hz:
        for precision in bits:
            size = largest_size(physics, bits=precision, rate_hz=rate)
            rows.append(
                {
                    "rate_hz": rate,
                    "bits": precision,
                    "largest_size": size,
                    "received_power_dbm": received_power_dbm(physics, size) if size else None,
                    "laser_power_w": laser_power_w(physics, size),
                    "basis": "modelled",
                }
            )
    return pd.DataFrame(rows)


def weight_errors(
    physics: Physics,
    *,
    seed: int,
    spacings: tuple[float, ...] = (2.5, 3.0, 3.41, 4.0, 5.0, 6.5, 8.0, 10.0, 14.0, 20.0),
    banks: int = 200,
    most_channels: int = 32,
) -> pd.DataFrame:
    """Return the error of random weights over channel spacing: rings set as if alone, calibrated, then drifted.

    Errors are relative to the full scale of the weights; `bits` is −log2(2·rms error).
    """
    rows = []
    generator = torch.Generator().manual_seed(seed)
    for spacing in track(spacings, "channel spacings"):
        channels = min(most_channels, int(channel_capacity(physics.ring_finesse, spacing)))
        bank = WeightBank(physics.ring, channels, spacing, reach=physics.weight_reach)
        uniform = torch.rand(banks, channels, generator=generator, dtype=torch.float64)
        target = (2 * uniform - 1) * bank.full_scale
        calibrated = bank.calibrate(target)
        for method, phases in {
            "isolated": bank.isolated_phases(target),
            "calibrated": calibrated,
            "drifted": calibrated + drift_phase(physics.temperature_error, physics),
        }.items():
            error = (bank.weights(phases) - target) / bank.full_scale
            # Below this is where Newton stops, not physics.
            rms = max(float(error.pow(2).mean().sqrt()), _FLOOR)
            rows.append(
                {
                    "spacing_linewidths": spacing,
                    "channels": channels,
                    "method": method,
                    "rms_error": rms,
                    "max_error": max(float(error.abs().max()), _FLOOR),
                    "bits": attainable_bits(rms),
                    "lorentzian_sum": lorentzian_crosstalk(spacing)[1],
                    "basis": "simulated",
                }
            )
    return pd.DataFrame(rows)
