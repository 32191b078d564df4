"""The analog core: which imperfections it has, its noise, and the weights that its rings hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lumoe.errors import UserError
from lumoe.photonics.physics.converters import leak_of_extinction, levels, quantize
from lumoe.photonics.physics.detector import Detector, from_dbm
from lumoe.photonics.physics.limits import require_count, require_finite, require_not_negative, require_positive
from lumoe.photonics.physics.link import received_power_dbm
from lumoe.photonics.physics.parameters import Physics
from lumoe.photonics.physics.tuning import drift_phase, heat, phase_of_shift, thermal_coupling
from lumoe.photonics.physics.weightbank import WeightBank, full_scale

Rings = Literal["ideal", "calibrated", "uncalibrated"]

# Rings whose weights are worked out at once: a few arrays of this many floats stay in the caches.
_CHUNK_RINGS = 1 << 17


@dataclass(frozen=True)
class Core:
    """A configuration of the analog core: which imperfections there are, and how large.

    Attributes:
        physics: the device numbers.
        channels: N, wavelengths per bank.
        rings: ``ideal`` weights are exact; ``calibrated`` go through Newton calibration and back through the bank, with
            heater crosstalk compensated and fabrication offsets trimmed; ``uncalibrated`` rings are set as if each were
            alone, with heater crosstalk and trimming that stops at `trim_error`.
        weight_bits, input_bits, detector_bits: resolution of the converters; None is exact.
        noise: multiple of the detector noise's standard deviation; 0 is none, 1 what the device numbers give.
        noise_floor: further noise, as a standard deviation over the detector's full scale.
        drift_k: error of the rings' temperature, kelvin.
        trim_error: of uncalibrated rings, the share of the fabrication variation that trimming leaves.
        extinction_db: of the modulators; infinity is a perfect modulator.
        laser_dbm: optical power per wavelength.
        per_group: own full scales for each group (each Winograd tap, each group of channels) instead of one for all.
        seed: of noise and fabrication, below 2³².
    """

    physics: Physics
    channels: int
    rings: Rings = "ideal"
    weight_bits: float | None = None
    input_bits: float | None = None
    detector_bits: float | None = None
    noise: float = 0.0
    noise_floor: float = 0.0
    drift_k: float = 0.0
    trim_error: float = 0.0
    extinction_db: float = math.inf
    laser_dbm: float | None = None
    per_group: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_count("channels", self.channels, 1)
        require_count("seed", self.seed, 0, 2**32 - 1)
        for name in ("noise", "noise_floor", "trim_error"):
            require_not_negative(name, getattr(self, name))
        require_finite("drift_k", self.drift_k)
        if self.laser_dbm is not None:
            require_finite("laser_dbm", self.laser_dbm)
        if self.rings not in get_args(Rings):
            raise UserError(f"rings is '{self.rings}', but must be one of {', '.join(get_args(Rings))}")
        self.leak  # noqa: B018 - a modulator without swing must fail here
        for bits, signed in ((self.weight_bits, True), (self.input_bits, False), (self.detector_bits, True)):
            if bits is not None:
                levels(bits, signed=signed)
        if self.rings != "ideal":
            self.bank  # noqa: B018 - more channels than the free spectral range holds must fail here

    @classmethod
    def ideal(cls, physics: Physics, channels: int | None = None) -> Core:
        """The core without any imperfection."""
        return cls(physics=physics, channels=channels or physics.channels)

    @classmethod
    def real(cls, physics: Physics, channels: int | None = None, **changes: object) -> Core:
        """The core with every imperfection at the device set's value; `changes` override fields."""
        core = cls(
            physics=physics,
            channels=channels or physics.channels,
            rings="calibrated",
            weight_bits=physics.weight_bits,
            input_bits=physics.input_bits,
            detector_bits=physics.detector_bits,
            noise=1.0,
            drift_k=physics.temperature_error,
            extinction_db=physics.modulator_extinction,
        )
        return replace(core, **changes)  # type: ignore[arg-type]

    @property
    def bank(self) -> WeightBank:
        """The weight bank of this design."""
        return WeightBank(
            self.physics.ring, self.channels, self.physics.channel_spacing, reach=self.physics.weight_reach
        )

    @property
    def leak(self) -> float:
        """ε/(1 − ε): what a modulator passes when off, over its swing."""
        if math.isinf(self.extinction_db):
            return 0.0
        require_positive("extinction_db", self.extinction_db)
        leak = leak_of_extinction(self.extinction_db)
        return leak / (1 - leak)

    def scales(self, largest: Tensor) -> Tensor:
        """Return the full scale of each group, [G]: its own `largest` magnitude [G] or that of all; 1 where it is 0."""
        largest = largest if self.per_group else largest.max().expand(len(largest))
        return torch.where(largest > 0, largest, torch.ones_like(largest))

    def noise_terms(self, rails: int) -> tuple[float, float, float]:
        """Return (constant, per lit channel, per squared sample) of a sample's noise variance, in squared samples.

        The shot noise counts the light as if rings lost none: at most that of the rings' loss too much.

        Args:
            rails: detectors per sample: 1, or 2 for the differential pair of signed inputs.
        """
        detector = Detector.of(self.physics)
        pair = detector.balanced
        bandwidth = self.physics.clock / math.sqrt(2)
        power = from_dbm(received_power_dbm(self.physics, self.channels, laser_dbm=self.laser_dbm))
        swing = 1 / (1 + self.leak)
        lit = detector.responsivity * power * swing
        unit = lit * full_scale(self.physics.ring, self.physics.weight_reach)
        constant = rails * pair.dark * bandwidth / unit**2
        shot = pair.shot * lit * bandwidth / unit**2
        squared = self.noise**2
        return squared * float(constant), squared * float(shot), squared * float(pair.intensity) * bandwidth


@dataclass(frozen=True)
class Weights:
    """Weights as the rings hold them.

    Attributes:
        banks: [G, B, K, N], relative to `scale`; short banks are padded with zeros.
        totals: [G, K], the sums of all relative weights of an output: what light on every channel gives.
        scale: [G], the weight that relative 1 stands for.
        inputs: C, the inputs before padding.
    """

    banks: Tensor
    totals: Tensor
    scale: Tensor
    inputs: int

    @property
    def channels(self) -> int:
        """Channels of a group's banks, spare ones of the last bank included."""
        return self.banks.shape[1] * self.banks.shape[3]


def hold(weight: Tensor, core: Core) -> Weights:
    """Put the weights [G, K, C] of G independent products into weight banks.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    require_finite("weight", weight)
    weight = weight.detach()
    groups, outputs, inputs = weight.shape
    scale = core.scales(weight.abs().amax((1, 2)))
    relative = weight / scale[:, None, None]
    if core.weight_bits is not None:
        relative = quantize(relative, bits=core.weight_bits, full_scale=1.0)
    banks = math.ceil(inputs / core.channels)
    whole = inputs // core.channels * core.channels
    full = relative[..., :whole].reshape(groups, outputs, -1, core.channels)
    held = relative.new_zeros(groups, outputs, banks, core.channels)
    held[:, :, : full.shape[2]] = _through_rings(full, core)
    if inputs > whole:
        held[:, :, -1, : inputs - whole] = _through_rings(relative[..., whole:], core)
    return Weights(held.transpose(1, 2).contiguous(), held.sum((2, 3)), scale, inputs)


def _through_rings(relative: Tensor, core: Core) -> Tensor:
    if core.rings == "ideal" or relative.numel() == 0:
        return relative
    bank = core.bank
    target = relative * bank.full_scale
    if core.rings == "calibrated":
        phases = bank.calibrate(target)
    else:
        generator = torch.Generator().manual_seed(core.seed)
        spread = phase_of_shift(core.trim_error * core.physics.fabrication_variation, core.physics)
        phases = heat(bank.isolated_phases(target), thermal_coupling(target.shape[-1], core.physics.thermal_crosstalk))
        phases = phases + spread * torch.randn(target.shape, generator=generator, dtype=target.dtype).to(phases)
    drifted = phases + drift_phase(core.drift_k, core.physics)
    rings = drifted.shape[-1]
    flat = drifted.reshape(-1, rings)
    parts = torch.split(flat, max(1, _CHUNK_RINGS // rings))
    return (torch.cat([bank.weights(part) for part in parts]) / bank.full_scale).reshape(relative.shape)
