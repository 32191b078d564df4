"""What the Winograd accelerator's lasers, rings and photodiodes can physically do, device set by device set.

The device sets count laser power per wavelength, kernel and rail, so the broadcast to them is already paid for. The ADC
converts the sum over all wavelengths of a photodiode: that sum, at full scale, is what must resolve the ADC's bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd

from lumoe.photonics.devices import DeviceSet
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.link import launched_dbm, received_dbm
from lumoe.photonics.physics.parameters import load_physics
from lumoe.photonics.studies.winograd import NOISE_LOSS

NOT_REACHABLE = float("nan")


@dataclass(frozen=True)
class Link:
    """The link of one device set.

    Attributes:
        channels, channel_capacity: wavelengths of a bus, and how many the rings' finesse and spacing allow.
        required_bits: what the ADCs are paid for.
        attainable_bits: effective bits of a photodiode's sum at full scale with the laser power of the set.
        channel_bits: effective bits of one wavelength alone.
        ceiling_bits: effective bits that the lasers' intensity noise leaves at any power.
        laser_factor: how many times the set's laser power the required bits need; at least 1, NaN if none is enough.
        feasible_channels, feasible_bits: whether the set keeps to both.
    """

    channels: int
    channel_capacity: int
    required_bits: float
    attainable_bits: float
    channel_bits: float
    ceiling_bits: float
    laser_factor: float
    feasible_channels: bool
    feasible_bits: bool


def link(devices: DeviceSet) -> Link:
    """Return the link of a device set of the Winograd accelerator."""
    physics = load_physics(devices)
    detector = Detector.of(physics)
    channels, rate, required = round(devices.si("channels")), devices.si("clock"), devices.si("adc_bits")
    values, kernels = devices.values(), devices.si("kernels")
    one = float(received_dbm(values, channels, kernels, launched_dbm(values, kernels)))
    total = one + 10 * math.log10(channels)
    needed = detector.required_power_dbm(required, rate)
    attainable = float(detector.effective_bits(from_dbm(total), rate))
    return Link(
        channels=channels,
        channel_capacity=physics.channels,
        required_bits=required,
        attainable_bits=attainable,
        channel_bits=float(detector.effective_bits(from_dbm(one), rate)),
        ceiling_bits=float(detector.ceiling_bits(rate)),
        laser_factor=max(1.0, 10 ** ((needed - total) / 10)) if math.isfinite(needed) else NOT_REACHABLE,
        feasible_channels=channels <= physics.channels,
        feasible_bits=attainable >= required,
    )


def with_links(layers: pd.DataFrame, links: dict[str, Link]) -> pd.DataFrame:
    """Return the layer table with each set's link, and the efficiency with as much laser power as the bits need.

    `output_bits` are the attainable bits less those that the tile's inverse transform takes.

    Args:
        layers: rows with device_set, gop_per_s, power_w, power_laser_w and noise_loss_bits.
    """
    added = pd.DataFrame([{"device_set": name} | asdict(found) for name, found in links.items()])
    table = layers.merge(added, on="device_set", how="left", validate="many_to_one")
    table["output_bits"] = (table["attainable_bits"] - table[NOISE_LOSS]).clip(lower=0)
    table["power_with_needed_laser_w"] = table["power_w"] + table["power_laser_w"] * (table["laser_factor"] - 1)
    table["gop_per_s_per_w_with_needed_laser"] = table["gop_per_s"] / table["power_with_needed_laser_w"]
    return table
