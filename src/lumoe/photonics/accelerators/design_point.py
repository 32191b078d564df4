"""A design point: an accelerator on a device set with every choice made, evaluated and held against what can be built.

It is what an estimate, a sweep and a simulation start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lumoe.errors import UserError, nearest
from lumoe.photonics.accelerators.choices import apply_choices
from lumoe.photonics.accelerators.feasibility import NEEDS, channel_limit
from lumoe.photonics.accelerators.registry import Accelerator, Estimate, accelerator
from lumoe.photonics.devices import UNITS, DeviceSet, Number, load_devices
from lumoe.photonics.network.shapes import ConvolutionShapes


@dataclass(frozen=True)
class DesignPoint:
    """All that an estimate depends on beside the network.

    Attributes:
        accelerator: which of the two.
        devices: its parts.
        choices: every design choice by name; those that are not given are as the accelerator has them by default.

    Raises:
        UserError: the accelerator has no such choice, or the device set lacks a number of the link.
    """

    accelerator: Accelerator
    devices: DeviceSet
    choices: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.accelerator.choices
        if unknown := [name for name in self.choices if name not in known]:
            raise UserError(f"{self.accelerator.name} has no choice '{unknown[0]}'{nearest(unknown[0], known)}")
        values = self.devices.values()
        NEEDS.check(values)
        limit = float(channel_limit(values))
        defaults = {name: limit if value is None else value for name, value in known.items()}
        object.__setattr__(self, "choices", {**defaults, **self.choices})

    @classmethod
    def named(cls, design: str, devices: str | None = None, choices: Sequence[str] = ()) -> DesignPoint:
        """Return the design point that a user names.

        Args:
            design: the accelerator.
            devices: a device set or a ``.yaml`` file; the accelerator's own unless given.
            choices: ``name=value`` of design choices and of device parameters, the latter in the device file's unit.

        Raises:
            UserError: an unknown accelerator, device set or name, or a value that is not possible.
        """
        chosen = accelerator(design)
        changed, made = apply_choices(choices, load_devices(devices or chosen.devices), list(chosen.choices))
        return cls(chosen, changed, made)

    def evaluate(self, shapes: ConvolutionShapes) -> Estimate:
        """Return what each of L layers costs, [L, 1].

        Raises:
            UserError: a choice or a device number is out of range, or a tile is impossible for a layer.
        """
        return self.sweep(shapes, {})

    def sweep(self, shapes: ConvolutionShapes, levels: Mapping[str, Number]) -> Estimate:
        """Return what each of L layers costs on P designs around this one, [L, P].

        Args:
            levels: arrays [P] of design choices and of device parameters, the latter in the device file's unit, that
                take the place of this point's.

        Raises:
            UserError: as `evaluate`, or the device set has no parameter of such a name.
        """
        choices = {name: level for name, level in levels.items() if name in self.accelerator.choices}
        values = {name: x * UNITS[self.devices[name].unit] for name, x in levels.items() if name not in choices}
        return self.accelerator.evaluate(shapes, {**self.devices.values(), **values}, {**self.choices, **choices})

    def warnings(self, estimate: Estimate) -> list[str]:
        """Return sentences on what rings, lasers and converters cannot do; none if they can.

        Args:
            estimate: of this point, for all layers that it is to run.
        """
        values = self.devices.values()
        channels = values.get("channels", self.choices.get("channels", 1.0))
        limit, wanted = float(channel_limit(values)), values["adc_bits"]
        resolved, bits = float(estimate.detector_bits.min()), float(estimate.least_bits[0])
        square_mm, field_mm2 = float(estimate.total_area_m2[0]) * 1e6, values.get("reticle_area", np.inf) * 1e6
        said = []
        if channels > limit:
            said.append(
                f"{channels:g} wavelengths do not fit: rings of finesse {values['ring_finesse']:g} at a spacing of "
                f"{values['channel_spacing']:g} linewidths tell {limit:g} apart"
            )
        if resolved < wanted:
            said.append(
                f"the lasers paid for leave {resolved:.1f} bits at {values['clock'] / 1e9:g} GS/s where the converters "
                f"have {wanted:g}; raise laser_channel_power or lower clock"
            )
        if bits < min(resolved, wanted):
            said.append(
                f"an output carries {bits:.1f} bits: weights and stored words bound it, and an inverse transform "
                "amplifies noise"
            )
        if square_mm > field_mm2:
            said.append(f"{square_mm:.0f} mm2 do not fit on one chip: a lithography field has {field_mm2:.0f} mm2")
        return said
