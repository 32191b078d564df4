"""The detector: noise of a photodiode and of a balanced pair, and the bits that it leaves.

One photodiode: σ² = [2q(R·P + I_d) + 4kT/R_L + (R·P)²·RIN]·B. A balanced pair adds the shot and thermal noise of both
diodes; the intensity noise of a shared laser is common to both, so only that of the difference remains.
The effective number of bits is eq. 8 of Al-Qadasi et al., "Scaling up silicon photonic-based accelerators", APL
Photonics 7, 020902 (2022). Every quantity is a number or an array of designs, which broadcast; nothing here needs
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from scipy.constants import Boltzmann, elementary_charge

from lumoe.photonics.devices import Number, Numbers
from lumoe.photonics.network.shapes import Array
from lumoe.photonics.physics.limits import require_finite, require_not_negative, require_positive

_CHARGE: float = elementary_charge
_BOLTZMANN: float = Boltzmann
# 6.02 dB per bit and 1.76 dB: a full-scale sine against the quantisation noise of an ideal converter.
_DB_PER_BIT, _SINE_DB = 6.02, 1.76


@dataclass(frozen=True)
class PairNoise:
    """Noise of a balanced pair's current per hertz of bandwidth, by what it grows with.

    Attributes:
        dark: A²/Hz, of dark currents and loads, without light.
        shot: A²/Hz for each ampere of the two photodiodes' currents together.
        intensity: 1/Hz, for the square of the difference of the two currents: of the laser that both share.
    """

    dark: Number
    shot: Number
    intensity: Number


@dataclass(frozen=True)
class Detector:
    """A photodiode with its load.

    Attributes:
        responsivity: R, A/W.
        dark_current: I_d, A.
        load: R_L, ohm.
        temperature: K.
        rin: relative intensity noise of the laser, dB/Hz.

    Raises:
        UserError: a value is not finite, or not positive where it must be.
    """

    responsivity: Number
    dark_current: Number
    load: Number
    temperature: Number
    rin: Number

    def __post_init__(self) -> None:
        for name in ("responsivity", "load", "temperature"):
            require_positive(f"detector {name}", getattr(self, name))
        require_not_negative("detector dark_current", self.dark_current)
        require_finite("detector rin", self.rin)

    @classmethod
    def of(cls, values: Numbers) -> Detector:
        """The detector of a device set: `Physics`, or its values by name."""
        return cls(
            responsivity=values["photodiode_responsivity"],
            dark_current=values["photodiode_dark_current"],
            load=values["photodiode_load"],
            temperature=values["temperature"],
            rin=values["laser_rin"],
        )

    @property
    def rin_per_hz(self) -> Number:
        """RIN as a power ratio per hertz."""
        ratio: Number = 10.0 ** (self.rin / 10)
        return ratio

    @property
    def thermal_density(self) -> Number:
        """4kT/R_L, A²/Hz."""
        return 4 * _BOLTZMANN * self.temperature / self.load

    def variance(self, power_w: Number, bandwidth_hz: Number) -> Number:
        """Return σ² of one photodiode's current, A², at received power `power_w`."""
        current = self.responsivity * power_w
        shot = 2 * _CHARGE * (current + self.dark_current)
        return (shot + self.thermal_density + current * current * self.rin_per_hz) * bandwidth_hz

    @property
    def balanced(self) -> PairNoise:
        """The noise of two such photodiodes whose currents are subtracted, lit by one laser."""
        return PairNoise(4 * _CHARGE * self.dark_current + 2 * self.thermal_density, 2 * _CHARGE, self.rin_per_hz)

    def effective_bits(self, power_w: Number, rate_hz: Number) -> Number:
        """Return the effective number of bits at received power `power_w` and data rate `rate_hz`; may be negative."""
        require_positive("received power", power_w)
        require_positive("data rate", rate_hz)
        lit, dark = np.sqrt(self.variance(power_w, 1.0)), np.sqrt(self.variance(0.0, 1.0))
        noise = (lit + dark) * np.sqrt(rate_hz / math.sqrt(2))
        bits: Number = (20 * np.log10(self.responsivity * power_w / noise) - _SINE_DB) / _DB_PER_BIT
        return bits

    def ceiling_bits(self, rate_hz: Number) -> Number:
        """Return the effective bits in the limit of infinite power: the intensity noise alone."""
        noise = np.sqrt(self.rin_per_hz * rate_hz / math.sqrt(2))
        bits: Number = (-20 * np.log10(noise) - _SINE_DB) / _DB_PER_BIT
        return bits

    def required_power_dbm(self, bits: float, rate_hz: float) -> float:
        """Return the received power that gives one detector `bits`, in dBm; infinity where its intensity noise forbids.

        The detector is one, not an array of designs.
        """
        # Taken here: it would be half of all that a sweep imports, and few ask this.
        from scipy.optimize import brentq

        def lacking(power_dbm: float) -> float:
            return float(self.effective_bits(from_dbm(power_dbm), rate_hz)) - bits

        highest = 60.0
        if lacking(highest) < 0:
            return math.inf
        return float(brentq(lacking, -120.0, highest, xtol=1e-9))


@overload
def from_dbm(power_dbm: float) -> float: ...
@overload
def from_dbm(power_dbm: Array) -> Array: ...
def from_dbm(power_dbm: Number) -> Number:
    """Return watts."""
    watts: Number = 1e-3 * 10.0 ** (power_dbm / 10)
    return watts
