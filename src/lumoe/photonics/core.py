"""The analog matrix product: what comes out of weight banks, detectors and converters instead of W·x.

A product over C inputs is split over ⌈C/N⌉ banks of at most N wavelengths. Each bank gives one detector sample per
output; samples are digitised and added up digitally. Quantities are relative: inputs to the modulators' full scale,
weights to the largest of their group, samples to the current of one fully lit channel at weight 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from scipy.constants import elementary_charge
from torch import Tensor

from lumoe.photonics.converters import leak_of_extinction, levels, quantize
from lumoe.photonics.limits import require_count, require_finite, require_not_negative, require_positive
from lumoe.photonics.link import received_power_dbm
from lumoe.photonics.noise import Detector, from_dbm
from lumoe.photonics.parameters import Physics
from lumoe.photonics.tuning import drift_phase, heat, phase_of_shift, thermal_coupling
from lumoe.photonics.weightbank import WeightBank, full_scale

Rings = Literal["ideal", "calibrated", "uncalibrated"]

# Detector samples that are worked on at once: a few arrays of this many floats stay in the caches.
_CHUNK_SAMPLES = 1 << 17
# How many samples the automatic range of a detector looks at, at least.
_RANGE_SAMPLES = 1 << 14


@dataclass(frozen=True)
class Core:
    """A design point of the analog core: which imperfections there are, and how large.

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
        seed: of noise and fabrication.
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
        for name in ("noise", "noise_floor", "trim_error"):
            require_not_negative(name, getattr(self, name))
        require_finite("drift_k", self.drift_k)
        for bits in (self.weight_bits, self.input_bits, self.detector_bits):
            if bits is not None:
                levels(bits, signed=True)
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
        leak = leak_of_extinction(self.extinction_db)
        require_positive("modulator swing (1 - leak)", 1 - leak)
        return leak / (1 - leak)

    def noise_terms(self, rails: int) -> tuple[float, float, float]:
        """Return (constant, per lit channel, per squared sample) of a sample's noise variance, in squared samples.

        The shot noise counts the light as if rings lost none: at most that of the rings' loss too much.

        Args:
            rails: detectors per sample: 1, or 2 for the differential pair of signed inputs.
        """
        detector = Detector.of(self.physics)
        bandwidth = self.physics.clock / math.sqrt(2)
        power = from_dbm(received_power_dbm(self.physics, self.channels, laser_dbm=self.laser_dbm))
        swing = 1 / (1 + self.leak)
        lit = detector.responsivity * power * swing
        unit = lit * full_scale(self.physics.ring, self.physics.weight_reach)
        charge: float = elementary_charge
        constant = rails * (4 * charge * detector.dark_current + 2 * detector.thermal_density) * bandwidth / unit**2
        shot = 2 * charge * lit * bandwidth / unit**2
        squared = self.noise**2
        return squared * constant, squared * shot, squared * detector.rin_per_hz * bandwidth


@dataclass(frozen=True)
class Weights:
    """Weights as the rings hold them.

    Attributes:
        banks: [G, B, K, N], relative to `scale`; short banks are padded with zeros.
        scale: [G], the weight that relative 1 stands for.
        inputs: C, the inputs before padding.
    """

    banks: Tensor
    scale: Tensor
    inputs: int


def hold(weight: Tensor, core: Core) -> Weights:
    """Put the weights [G, K, C] of G independent products into weight banks.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    require_finite("weight", weight)
    weight = weight.detach()
    groups, outputs, inputs = weight.shape
    scale = weight.abs().amax((1, 2)) if core.per_group else weight.abs().max().expand(groups)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
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
    return Weights(held.transpose(1, 2).contiguous(), scale, inputs)


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
    parts = torch.split(flat, max(1, _CHUNK_SAMPLES // rings))
    return (torch.cat([bank.weights(part) for part in parts]) / bank.full_scale).reshape(relative.shape)


@torch.no_grad()
def multiply(
    weights: Weights,
    inputs: Tensor,
    core: Core,
    *,
    input_scale: Tensor,
    detector_scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the analog products [G, K, L] of `weights` with the columns of `inputs`, and the detectors' full scale.

    Args:
        inputs: [G, C, L], relative to `input_scale` and already through the DACs (:func:`convert_inputs`).
        input_scale: [G], the input that relative 1 stands for.
        detector_scale: [G], full scale of the ADCs; measured on a subset of these very samples where not given.
        generator: of the noise, on the inputs' device.
    """
    groups, count, outputs, channels = weights.banks.shape
    columns = inputs.shape[-1]
    signed = bool((inputs < 0).any())
    padded = inputs.new_zeros(groups, count * channels, columns) if inputs.shape[1] != count * channels else inputs
    if padded is not inputs:
        padded[:, : inputs.shape[1]] = inputs
    held = weights.banks.to(inputs).reshape(groups * count, outputs, channels)
    lit = padded.reshape(groups * count, channels, columns)
    # A single rail's leak adds a known offset; on a differential pair it cancels.
    offset = held.sum(-1, keepdim=True) * (0.0 if signed else core.leak)
    if detector_scale is None:
        detector_scale = _range(held, lit, offset, core, groups)
    constant, shot, intensity = core.noise_terms(2 if signed else 1)
    leaked = core.leak * channels * (2 if signed else 1)
    noisy = core.noise > 0 or core.noise_floor > 0
    group = torch.arange(groups, device=inputs.device).repeat_interleave(count)
    limit = None if core.detector_bits is None else levels(core.detector_bits, signed=True)[1]
    result = inputs.new_zeros(groups, outputs, columns)
    width = min(columns, max(1, _CHUNK_SAMPLES // outputs))
    height = max(1, _CHUNK_SAMPLES // (outputs * width))
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        for first in range(0, groups * count, height):
            banks = slice(first, min(first + height, groups * count))
            light = lit[banks, :, start:stop]
            samples = torch.baddbmm(offset[banks], held[banks], light)
            scale = detector_scale[group[banks]].reshape(-1, 1, 1)
            if noisy:
                quiet = (light.abs() if signed else light).sum(1, keepdim=True).add_(leaked).mul_(shot)
                quiet = quiet + (constant + (core.noise_floor * scale) ** 2)
                deviation = torch.addcmul(quiet, samples, samples, value=intensity).sqrt_()
                samples.addcmul_(deviation, torch.empty_like(samples).normal_(generator=generator))
            if limit is not None:
                step = scale / limit
                samples.div_(step).round_().clamp_(-limit, limit).mul_(step)
            if core.leak and not signed:
                samples.sub_(offset[banks])
            result[:, :, start:stop].index_add_(0, group[banks], samples)
    return result.mul_((weights.scale.to(inputs) * input_scale).reshape(-1, 1, 1)), detector_scale


def convert_inputs(inputs: Tensor, core: Core, scale: Tensor) -> Tensor:
    """Return `inputs` relative to `scale` (broadcasts) as the DACs and modulators give them, clipped to full scale.

    A negative input drives the second rail of a differential pair, with the same magnitude bits.
    """
    relative = inputs / scale
    if core.input_bits is None:
        return relative
    highest = levels(core.input_bits, signed=False)[1]
    return relative.mul_(highest).round_().clamp_(-highest, highest).div_(highest)


def _range(held: Tensor, lit: Tensor, offset: Tensor, core: Core, groups: int) -> Tensor:
    """Full scale of the detectors: the largest of evenly spaced samples, per group or for all."""
    if core.detector_bits is None and not core.noise_floor:
        return held.new_ones(groups)
    columns = lit.shape[-1]
    wanted = max(16, math.ceil(_RANGE_SAMPLES / (held.shape[0] * held.shape[1])))
    some = lit[..., :: max(1, columns // wanted)]
    largest = torch.baddbmm(offset, held, some).abs().reshape(groups, -1).amax(1)
    largest = largest if core.per_group else largest.max().expand(groups)
    return torch.where(largest > 0, largest, torch.ones_like(largest))
