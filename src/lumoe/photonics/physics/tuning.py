"""Holding rings where calibration wants them: heaters, their crosstalk, drift, and the power it takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lumoe.photonics.physics.limits import require_between, require_count
from lumoe.photonics.physics.parameters import Physics


def thermal_coupling(rings: int, nearest: float) -> Tensor:
    """Return the matrix [rings, rings] of the phase each ring gets from each heater: nearest^|i − j|."""
    require_count("rings", rings, 1)
    require_between("thermal crosstalk", nearest, 0.0, 0.5, closed=True)
    index = torch.arange(rings)
    return torch.tensor(nearest, dtype=torch.float64) ** (index[:, None] - index).abs()


def heat(phases: Tensor, coupling: Tensor) -> Tensor:
    """Return the phases [..., n] that heaters set to `phases` give their rings, crosstalk included."""
    return phases @ coupling.to(phases).T


def compensate(phases: Tensor, coupling: Tensor) -> Tensor:
    """Return the heater settings [..., n] whose crosstalk adds up to `phases`: the inverse of :func:`heat`."""
    rings = phases.shape[-1]
    solved: Tensor = torch.linalg.solve(coupling.to(phases), phases.reshape(-1, rings).T)
    return solved.T.reshape(phases.shape)


def phase_of_shift(shift_m: float, physics: Physics) -> float:
    """Return the round-trip phase of a resonance that moved by `shift_m` of wavelength."""
    return 2 * math.pi * shift_m / physics.ring.free_spectral_range_m


def drift_phase(kelvin: float, physics: Physics) -> float:
    """Return the phase by which every ring moves when the chip warms by `kelvin`."""
    return phase_of_shift(kelvin * physics.resonance_drift, physics)


def heater_settings(phases: Tensor, fabricated: Tensor) -> Tensor:
    """Return the phases in [0, 2π) that heaters add to rings fabricated off by `fabricated`; heat only moves red."""
    return torch.remainder(phases - fabricated, 2 * math.pi)


def thermo_optic_power_w(phases: Tensor, physics: Physics) -> Tensor:
    """Return each bank's heater power, W: the phases [..., n] in units of one free spectral range, summed."""
    return phases.sum(-1) / (2 * math.pi) * physics.thermo_optic_power
