"""What a set of rings, lasers and detectors can physically carry, over arrays of designs.

The same equations as `link`, `noise` and `weightbank` (Al-Qadasi et al., APL Photonics 7, 020902 (2022); Tait et al.,
IEEE JSTQE 22, 5900214 (2016)), for N wavelengths that are split to M kernels, each an array. Device values are SI
numbers by name, as `DeviceSet.values` gives them; logarithmic units stay logarithmic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.constants import Boltzmann, elementary_charge

from lumoe.photonics.accelerators.checks import Number, require_known, require_rates
from lumoe.photonics.physics.weightbank import channel_capacity

Array = npt.NDArray[np.float64]
Values = Mapping[str, Number]
# The device parameters that the link reads: those that must be positive, and the rest.
_RATES = (
    "ring_finesse", "channel_spacing", "laser_channel_power", "laser_wall_plug_efficiency", "photodiode_responsivity",
    "photodiode_load", "temperature",
)  # fmt: skip
PARAMETERS = (
    *_RATES, "laser_rin", "photodiode_dark_current", "link_fibre_coupling_loss", "link_modulator_loss",
    "link_weight_loss", "link_waveguide_loss", "link_ring_pitch", "link_off_resonance_loss", "link_splitter_loss",
    "link_penalty",
)  # fmt: skip


def check_values(values: Values) -> None:
    """Raise unless every parameter of the link is there, and positive where it must be.

    Raises:
        UserError: the message names the parameter.
    """
    require_known(values, PARAMETERS, "the link budget")
    require_rates(values, _RATES)


def channel_limit(values: Values) -> Array:
    """Return the whole number of wavelengths that one bank tells apart: ⌊finesse / spacing⌋."""
    limit: Array = np.floor(channel_capacity(values["ring_finesse"], values["channel_spacing"]))  # type: ignore[arg-type]
    return limit


def launched_dbm(values: Values, kernels: Number) -> Array:
    """Return the optical power of one wavelength, dBm, that the electrical power spent on it and its kernels gives.

    Args:
        values: `laser_channel_power`, W of electricity per wavelength and kernel, and `laser_wall_plug_efficiency`.
        kernels: M, how many kernels share the laser.
    """
    watts = np.asarray(values["laser_channel_power"]) * values["laser_wall_plug_efficiency"] * np.asarray(kernels)
    launched: Array = 10 * np.log10(watts * 1e3)
    return launched


def received_dbm(values: Values, channels: Number, kernels: Number, launched: Number) -> Array:
    """Return what one wavelength still carries at one kernel's photodiodes, dBm.

    Args:
        channels: N, wavelengths on the bus: waveguide length and rings passed by.
        kernels: M, ways that the light is split into.
        launched: optical power of one wavelength, dBm.
    """
    colours, ways = np.asarray(channels, dtype=float), np.asarray(kernels, dtype=float)
    # the loss is per centimetre, the pitch in metres
    waveguide = np.asarray(values["link_waveguide_loss"]) * values["link_ring_pitch"] * 100 * colours
    passed = 2 * np.asarray(values["link_off_resonance_loss"]) * (colours - 1)
    split = 10 * np.log10(ways) + np.asarray(values["link_splitter_loss"]) * np.log2(ways)
    fixed = np.asarray(values["link_fibre_coupling_loss"]) + values["link_modulator_loss"] + values["link_weight_loss"]
    received: Array = launched - fixed - waveguide - passed - split - values["link_penalty"]
    return received


def effective_bits(values: Values, power_dbm: Number, rate_hz: Number) -> Array:
    """Return the effective number of bits of a detector at received power and data rate (eq. 8 of Al-Qadasi et al.)."""
    current = np.asarray(values["photodiode_responsivity"]) * 1e-3 * 10.0 ** (np.asarray(power_dbm) / 10)
    dark = np.asarray(values["photodiode_dark_current"])
    thermal = 4 * Boltzmann * np.asarray(values["temperature"]) / values["photodiode_load"]
    rin = 10 ** (np.asarray(values["laser_rin"]) / 10)
    lit = np.sqrt(2 * elementary_charge * (current + dark) + thermal + current**2 * rin)
    unlit = np.sqrt(2 * elementary_charge * dark + thermal)
    noise = (lit + unlit) * np.sqrt(np.asarray(rate_hz) / np.sqrt(2))
    bits: Array = (20 * np.log10(current / noise) - 1.76) / 6.02
    return bits


def attainable_bits(values: Values, channels: Number, kernels: Number, rate_hz: Number) -> Array:
    """Return the bits that the lasers paid for leave at the detectors, not below 0; 0 for more channels than fit.

    A detector sums all its wavelengths, so it is their power together that must resolve the bits at full scale. The
    power is what `laser_channel_power` gives: the energy of a design and its bits rest on one number.
    """
    one = received_dbm(values, channels, kernels, launched_dbm(values, kernels))
    bits = effective_bits(values, one + 10 * np.log10(np.asarray(channels, dtype=float)), rate_hz)
    return np.where(np.asarray(channels) > channel_limit(values), 0.0, np.maximum(bits, 0.0))
