"""Optical link: how many wavelengths a bus holds, and what each still carries when it meets the photodiode.

The losses and penalties are those of Al-Qadasi et al., APL Photonics 7, 020902 (2022): a laser per wavelength, N
wavelengths on the bus, M-fold broadcast. The formulas take numbers or arrays of designs, which broadcast, and read the
device numbers by the names of `data/devices/*.yaml`. Nothing here needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lumoe.photonics.devices import Number, Numbers
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.limits import require_count, require_positive

if TYPE_CHECKING:
    from lumoe.photonics.physics.parameters import Physics


def channel_capacity(finesse: Number, spacing: Number) -> Number:
    """Return F/δ, the channels that one free spectral range holds (Tait 2016); a whole bank takes the floor."""
    require_positive("finesse", finesse)
    require_positive("spacing", spacing)
    # Published spacings have three digits: a relative 1e-4 keeps F/δ = 39.0 from losing a channel to the last bit.
    return finesse / spacing * (1 + 1e-4)


def launched_dbm(values: Numbers, kernels: Number) -> Number:
    """Return the optical power of one wavelength, dBm, that the electrical power spent on it and its kernels gives.

    Args:
        values: `laser_channel_power`, W of electricity per wavelength and kernel, and `laser_wall_plug_efficiency`.
        kernels: M, how many kernels share the laser.
    """
    watts = values["laser_channel_power"] * values["laser_wall_plug_efficiency"] * kernels
    launched: Number = 10 * np.log10(watts * 1e3)
    return launched


def received_dbm(values: Numbers, channels: Number, kernels: Number, launched: Number) -> Number:
    """Return what one wavelength still carries at one kernel's photodiodes, dBm.

    Args:
        values: the losses of the link, `link_*`.
        channels: N, wavelengths on the bus: waveguide length and rings passed by.
        kernels: M, ways that the light is split into; every doubling passes a splitter.
        launched: optical power of one wavelength, dBm.
    """
    # The waveguide's loss is per centimetre; the pitch is in metres.
    waveguide = values["link_waveguide_loss"] * values["link_ring_pitch"] * 100 * channels
    passed = 2 * values["link_off_resonance_loss"] * (channels - 1)
    split = 10 * np.log10(kernels) + values["link_splitter_loss"] * np.log2(kernels)
    fixed = values["link_fibre_coupling_loss"] + values["link_modulator_loss"] + values["link_weight_loss"]
    received: Number = launched - fixed - waveguide - passed - split - values["link_penalty"]
    return received


def received_power_dbm(physics: Physics, channels: int, *, laser_dbm: float | None = None) -> float:
    """Return the power of one wavelength at the photodiode for N = M = `channels`, dBm.

    Args:
        laser_dbm: optical power of one wavelength; that of the device set unless given.
    """
    require_count("channels", channels, 1)
    launched = physics.laser_power if laser_dbm is None else laser_dbm
    return float(received_dbm(physics, channels, channels, launched))


def largest_size(physics: Physics, *, bits: float, rate_hz: float, laser_dbm: float | None = None) -> int:
    """Return the largest N = M whose received power still gives `bits` at `rate_hz`; 0 if not even one does."""
    needed = Detector.of(physics).required_power_dbm(bits, rate_hz)
    size = 0
    while received_power_dbm(physics, size + 1, laser_dbm=laser_dbm) >= needed:
        size += 1
    return size


def laser_power_w(physics: Physics, channels: int, *, laser_dbm: float | None = None) -> float:
    """Return the electrical power of `channels` lasers: optical power over the wall-plug efficiency."""
    require_positive("wall-plug efficiency", physics.laser_wall_plug_efficiency)
    launched = physics.laser_power if laser_dbm is None else laser_dbm
    return channels * from_dbm(launched) / physics.laser_wall_plug_efficiency
