"""Noise of a balanced photodiode pair, and the bits that it leaves.

One photodiode: σ² = [2q(R·P + I_d) + 4kT/R_L + (R·P)²·RIN]·B. A balanced pair adds the shot and thermal noise of both
diodes; the intensity noise of a shared laser is common to both, so only that of the difference remains.
The effective number of bits is eq. 8 of Al-Qadasi et al., "Scaling up silicon photonic-based accelerators", APL
Photonics 7, 020902 (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.constants import Boltzmann, elementary_charge
from scipy.optimize import brentq
from torch import Tensor

from lumoe.photonics.physics.limits import require_finite, require_not_negative, require_positive
from lumoe.photonics.physics.parameters import Physics

_CHARGE: float = elementary_charge
_BOLTZMANN: float = Boltzmann
# 6.02 dB per bit and 1.76 dB: a full-scale sine against the quantisation noise of an ideal converter.
_DB_PER_BIT, _SINE_DB = 6.02, 1.76


@dataclass(frozen=True)
class Detector:
    """A photodiode with its load.

    Attributes:
        responsivity: R, A/W.
        dark_current: I_d, A.
        load: R_L, ohm.
        temperature: K.
        rin: relative intensity noise of the laser, dB/Hz.
    """

    responsivity: float
    dark_current: float
    load: float
    temperature: float
    rin: float

    def __post_init__(self) -> None:
        for name in ("responsivity", "load", "temperature"):
            require_positive(f"detector {name}", getattr(self, name))
        require_not_negative("detector dark_current", self.dark_current)
        require_finite("detector rin", self.rin)

    @classmethod
    def of(cls, physics: Physics) -> Detector:
        """The detector of a device set."""
        return cls(
            responsivity=physics.photodiode_responsivity,
            dark_current=physics.photodiode_dark_current,
            load=physics.photodiode_load,
            temperature=physics.temperature,
            rin=physics.laser_rin,
        )

    @property
    def rin_per_hz(self) -> float:
        """RIN as a power ratio per hertz."""
        return math.pow(10, self.rin / 10)

    @property
    def thermal_density(self) -> float:
        """4kT/R_L, A²/Hz."""
        return 4 * _BOLTZMANN * self.temperature / self.load

    def variance(self, power_w: Tensor, bandwidth_hz: float) -> Tensor:
        """Return σ² of one photodiode's current, A², at received power `power_w`."""
        current = self.responsivity * power_w
        shot = 2 * _CHARGE * (current + self.dark_current)
        return (shot + self.thermal_density + current**2 * self.rin_per_hz) * bandwidth_hz

    def balanced_variance(self, drop_w: Tensor, through_w: Tensor, bandwidth_hz: float) -> Tensor:
        """Return σ² of a balanced pair's current, A², for the powers on its two diodes and one shared laser."""
        total = self.responsivity * (drop_w + through_w)
        difference = self.responsivity * (drop_w - through_w)
        shot = 2 * _CHARGE * (total + 2 * self.dark_current)
        return (shot + 2 * self.thermal_density + difference**2 * self.rin_per_hz) * bandwidth_hz

    def effective_bits(self, power_w: float, rate_hz: float) -> float:
        """Return the effective number of bits at received power `power_w` and data rate `rate_hz`; may be negative."""
        require_positive("received power", power_w)
        require_positive("data rate", rate_hz)
        current = self.responsivity * power_w
        lit = math.sqrt(float(self.variance(torch.tensor(power_w, dtype=torch.float64), 1.0)))
        dark = math.sqrt(2 * _CHARGE * self.dark_current + self.thermal_density)
        noise = (lit + dark) * math.sqrt(rate_hz / math.sqrt(2))
        return (20 * math.log10(current / noise) - _SINE_DB) / _DB_PER_BIT

    def ceiling_bits(self, rate_hz: float) -> float:
        """Return the effective bits in the limit of infinite power: the intensity noise alone."""
        noise = math.sqrt(self.rin_per_hz * rate_hz / math.sqrt(2))
        return (-20 * math.log10(noise) - _SINE_DB) / _DB_PER_BIT

    def required_power_dbm(self, bits: float, rate_hz: float) -> float:
        """Return the received power that gives `bits`, in dBm; infinity where the intensity noise forbids it."""
        highest = 60.0
        if self.effective_bits(from_dbm(highest), rate_hz) < bits:
            return math.inf

        def lacking(power_dbm: float) -> float:
            return self.effective_bits(from_dbm(power_dbm), rate_hz) - bits

        return float(brentq(lacking, -120.0, highest, xtol=1e-9))


def from_dbm(power_dbm: float) -> float:
    """Return watts."""
    return 1e-3 * math.pow(10, power_dbm / 10)
