"""What a set of rings, lasers and detectors can physically carry, over arrays of designs.

The formulas are those of `physics.link` and `physics.detector`, for N wavelengths that are split to M kernels, each an
array. Device values are SI numbers by name, as `DeviceSet.values` gives them; logarithmic units stay logarithmic.
"""

from __future__ import annotations

import numpy as np

from lumoe.photonics.accelerators.checks import Needs
from lumoe.photonics.devices import Number, Values
from lumoe.photonics.network.shapes import Array
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.link import channel_capacity, launched_dbm, received_dbm

NEEDS = Needs(
    "the link budget",
    rates=(
        "ring_finesse", "channel_spacing", "laser_channel_power", "laser_wall_plug_efficiency",
        "photodiode_responsivity", "photodiode_load", "temperature",
    ),
    others=(
        "laser_rin", "photodiode_dark_current", "link_fibre_coupling_loss", "link_modulator_loss", "link_weight_loss",
        "link_waveguide_loss", "link_ring_pitch", "link_off_resonance_loss", "link_splitter_loss", "link_penalty",
    ),
)  # fmt: skip


def channel_limit(values: Values) -> Array:
    """Return the whole number of wavelengths that one bank tells apart: ⌊finesse / spacing⌋."""
    limit: Array = np.floor(channel_capacity(values["ring_finesse"], values["channel_spacing"]))
    return limit


def effective_bits(values: Values, power_dbm: Number, rate_hz: Number) -> Number:
    """Return the effective number of bits of a detector at received power (dBm) and data rate; may be negative."""
    return Detector.of(values).effective_bits(from_dbm(power_dbm), rate_hz)


def attainable_bits(values: Values, channels: Number, kernels: Number, rate_hz: Number) -> Array:
    """Return the bits that the lasers paid for leave at the detectors, not below 0; 0 for more channels than fit.

    A detector sums all its wavelengths, so it is their power together that must resolve the bits at full scale. The
    power is what `laser_channel_power` gives: the energy of a design and its bits rest on one number.
    """
    one = received_dbm(values, channels, kernels, launched_dbm(values, kernels))
    bits = effective_bits(values, one + 10 * np.log10(channels), rate_hz)
    return np.where(channels > channel_limit(values), 0.0, np.maximum(bits, 0.0))
