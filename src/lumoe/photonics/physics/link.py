"""Optical link budget: what a laser's wavelength still carries when it meets the photodiode.

The losses and penalties are those of Al-Qadasi et al., APL Photonics 7, 020902 (2022): a laser per wavelength, N
wavelengths on the bus, N-fold broadcast.
"""

from __future__ import annotations

import math

from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.limits import require_count, require_positive
from lumoe.photonics.physics.parameters import Physics


def received_power_dbm(physics: Physics, channels: int, *, laser_dbm: float | None = None) -> float:
    """Return the power of one wavelength at the photodiode for N = M = `channels`, dBm.

    Waveguide and passed-by rings grow with N, the broadcast divides by N, and every doubling passes a splitter.
    """
    require_count("channels", channels, 1)
    launched = physics.laser_power if laser_dbm is None else laser_dbm
    # waveguide loss is per centimetre; the pitch is in metres
    waveguide = physics.link_waveguide_loss * physics.link_ring_pitch * 100 * channels
    passed = 2 * physics.link_off_resonance_loss * (channels - 1)
    split = 10 * math.log10(channels) + physics.link_splitter_loss * math.log2(channels)
    fixed = physics.link_fibre_coupling_loss + physics.link_modulator_loss + physics.link_weight_loss
    return launched - fixed - waveguide - passed - split - physics.link_penalty


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
