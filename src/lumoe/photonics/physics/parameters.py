"""Physics: the numbers of a device set that rings, links and the analog core need, in SI units and checked."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lumoe.errors import UserError
from lumoe.photonics.devices import DeviceSet, load_devices
from lumoe.photonics.physics.link import channel_capacity
from lumoe.photonics.physics.microring import Microring


class Physics(BaseModel):
    """Ring, detector, link, converters and tuning; the names are those of `data/devices/*.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # ring and bank
    ring_finesse: float
    ring_round_trip_amplitude: float
    ring_radius: float
    ring_group_index: float
    wavelength: float
    channel_spacing: float
    weight_reach: float
    resonance_drift: float
    temperature_error: float
    fabrication_variation: float
    thermal_crosstalk: float
    thermo_optic_power: float
    # converters
    weight_bits: float
    input_bits: float
    detector_bits: float
    modulator_extinction: float
    # detector and laser
    clock: float
    photodiode_responsivity: float
    photodiode_dark_current: float
    photodiode_load: float
    laser_rin: float
    temperature: float
    laser_power: float
    laser_wall_plug_efficiency: float
    # link
    link_fibre_coupling_loss: float
    link_waveguide_loss: float
    link_ring_pitch: float
    link_modulator_loss: float
    link_off_resonance_loss: float
    link_splitter_loss: float
    link_weight_loss: float
    link_penalty: float

    def __getitem__(self, name: str) -> float:
        """The number of that name, so that formulas read it here as they do in a device set's values."""
        return float(getattr(self, name))

    @property
    def ring(self) -> Microring:
        """The weight bank's ring."""
        return Microring.with_finesse(
            self.ring_finesse,
            loss=self.ring_round_trip_amplitude,
            radius_m=self.ring_radius,
            group_index=self.ring_group_index,
            wavelength_m=self.wavelength,
        )

    @property
    def channels(self) -> int:
        """The most channels that one bank holds."""
        return int(channel_capacity(self.ring_finesse, self.channel_spacing))


def load_physics(devices: str | Path | DeviceSet = "moderate") -> Physics:
    """Return the physics of a device set, given by name, by file or loaded.

    Raises:
        UserError: the set is unknown or lacks a number that the core needs.
    """
    found = devices if isinstance(devices, DeviceSet) else load_devices(devices)
    if missing := [name for name in Physics.model_fields if name not in found.parameters]:
        raise UserError(f"device set '{found.name}' lacks '{missing[0]}', which the functional core needs")
    return Physics(**{name: found.si(name) for name in Physics.model_fields})
