"""The analog matrix product: what comes out of weight banks, detectors and converters instead of W·x.

A product over C inputs is split over ⌈C/N⌉ banks of at most N wavelengths. Each bank gives one detector sample per
output; samples are digitised and added up digitally. Quantities are relative: inputs to the modulators' full scale,
weights to the largest of their group, samples to the current of one fully lit channel at weight 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lumoe.photonics.core.core import Core, Weights
from lumoe.photonics.core.readout import Draw, Readout, add_readings
from lumoe.photonics.physics.converters import levels

# Detector samples that are worked on at once: they stay in the processor's caches, and fill another device.
_PART_SAMPLES = 1 << 18
_DEVICE_SAMPLES = 1 << 24
# Columns of the inputs that a panel has at least, so that the matrix product stays efficient.
_PANEL_COLUMNS = 64
# How many samples the automatic range of a detector looks at, at least; and how many columns.
_RANGE_SAMPLES = 1 << 18
_RANGE_COLUMNS = 16


@dataclass(frozen=True)
class Light:
    """What the modulators send to the banks.

    Attributes:
        power: of each channel, relative to the modulators' swing, any shape; negative where it is on the second rail.
        signed: whether there are two rails.
    """

    power: Tensor
    signed: bool


def modulate_inputs(inputs: Tensor, core: Core, scale: Tensor) -> Light:
    """Return the light of `inputs` relative to `scale` (broadcasts), by DACs and modulators, clipped to full scale.

    A negative input drives the second rail of a differential pair, with the same magnitude bits. The leak of a single
    rail's modulators comes on top of every channel; on a pair it cancels.
    """
    signed = inputs.numel() > 0 and bool(inputs.amin() < 0)
    power = inputs / scale
    if core.input_bits is not None:
        highest = levels(core.input_bits, signed=False)[1]
        power.mul_(highest).round_().clamp_(-highest, highest).div_(highest)
    return Light(power if signed or not core.leak else power.add_(core.leak), signed)


@torch.no_grad()
def multiply(
    weights: Weights,
    light: Light,
    core: Core,
    draw: Draw,
    *,
    input_scale: Tensor,
    detector_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the analog products [G, K, L] of `weights` with the columns of inputs, and the detectors' full scale.

    Args:
        light: of power [G, C, L]; C may include dark channels that fill the last bank.
        draw: which noise.
        input_scale: [G], the input that a power of 1 stands for.
        detector_scale: [G], full scale of the ADCs; measured on a subset of these very samples where not given.
    """
    held = weights.banks.to(light.power)
    groups, count, outputs, channels = held.shape
    columns = light.power.shape[-1]
    lit = fill_banks(light.power, count * channels).reshape(groups, count, channels, columns)
    known: Tensor | None = None
    if detector_scale is None:
        detector_scale, known = _range(held, lit, core)
    limit = None if core.detector_bits is None else levels(core.detector_bits, signed=True)[1]
    steps = torch.ones_like(detector_scale) if limit is None else limit / detector_scale
    quiet, intensity = _noise(lit, light.signed, core, detector_scale)
    result = lit.new_zeros(groups, outputs, columns)
    scratch = lit.new_empty(0)
    for part in _parts(groups, count, outputs, columns, lit.device.type):
        if known is not None:
            samples = known[part.groups, part.banks]
        else:
            held_here, lit_here = held[part.groups, part.banks], lit[part.groups, part.banks, :, part.columns]
            shape = (*held_here.shape[:3], lit_here.shape[3])
            if scratch.numel() < math.prod(shape):
                scratch = lit.new_empty(math.prod(shape))
            samples = scratch[: math.prod(shape)].view(shape)
            torch.bmm(held_here.flatten(0, 1), lit_here.flatten(0, 1), out=samples.flatten(0, 1))
        here = None if quiet is None else quiet[part.groups, part.banks, part.columns]
        add_readings(
            result[part.groups, :, part.columns],
            samples,
            Readout(here, intensity, steps[part.groups], limit),
            draw,
            panel=part.panel,
            bank=part.groups.start * count + part.banks.start,
        )
    if core.leak and not light.signed:
        result -= (core.leak * steps)[:, None, None] * weights.totals.to(lit)[:, :, None]
    return result.mul_((weights.scale.to(lit) * input_scale / steps)[:, None, None]), detector_scale


def fill_banks(power: Tensor, channels: int) -> Tensor:
    """Return `power` [G, C, L] with dark channels added up to `channels`."""
    groups, count, columns = power.shape
    if count == channels:
        return power
    filled = power.new_zeros(groups, channels, columns)
    filled[:, :count] = power
    return filled


@dataclass(frozen=True)
class _Part:
    """What is worked on at once: some groups and banks of a panel, as a stretch of columns is called.

    Noise is numbered by panels, which do not depend on the device.
    """

    groups: slice
    banks: slice
    columns: slice
    panel: int


def _parts(groups: int, banks: int, outputs: int, columns: int, device: str) -> Iterator[_Part]:
    """Yield parts of few enough samples: many groups with all their banks, or some banks of one group."""
    width = min(columns, max(_PANEL_COLUMNS, _PART_SAMPLES // outputs))
    if width == 0:
        return
    slabs = _slabs(outputs, width, device)
    groups_at_once, banks_at_once = max(1, slabs // banks), min(banks, slabs)
    for number, left in enumerate(range(0, columns, width)):
        across = slice(left, min(left + width, columns))
        for group in range(0, groups, groups_at_once):
            down = slice(group, min(group + groups_at_once, groups))
            for bank in range(0, banks, banks_at_once):
                yield _Part(down, slice(bank, min(bank + banks_at_once, banks)), across, number)


def _slabs(outputs: int, width: int, device: str) -> int:
    """How many banks' samples are worked on at once."""
    return max(1, (_PART_SAMPLES if device == "cpu" else _DEVICE_SAMPLES) // (outputs * width))


def _noise(lit: Tensor, signed: bool, core: Core, scale: Tensor) -> tuple[Tensor | None, float]:
    """The variance of a sample's noise: a part [G, B, L] and the factor of the squared sample, for lit [G, B, N, L]."""
    if core.noise == 0 and core.noise_floor == 0:
        return None, 0.0
    constant, shot, intensity = core.noise_terms(2 if signed else 1)
    if signed:
        constant += 2 * core.leak * core.channels * shot
    received = lit.abs().sum(2) if signed else lit.sum(2)
    floor = (core.noise_floor * scale) ** 2
    return received.mul_(shot).add_((constant + floor)[:, None, None]), intensity


def _range(held: Tensor, lit: Tensor, core: Core) -> tuple[Tensor, Tensor | None]:
    """Full scale of the detectors [G]: the largest of scattered columns' samples, per group or for all.

    Where few columns make these all samples there are, they come along, [G, B, K, L].
    """
    groups, banks, outputs, _ = held.shape
    columns = lit.shape[-1]
    if columns == 0 or (core.detector_bits is None and not core.noise_floor):
        return held.new_ones(groups), None
    wanted = max(_RANGE_COLUMNS, math.ceil(_RANGE_SAMPLES / (groups * banks * outputs)))
    some = lit if columns <= wanted else lit[..., _scattered(wanted, columns).to(lit.device)]
    samples = torch.bmm(held.flatten(0, 1), some.flatten(0, 1))
    largest = torch.maximum(samples.amax((1, 2)), -samples.amin((1, 2))).reshape(groups, -1).amax(1)
    few = some.shape[-1] == columns and columns <= _PANEL_COLUMNS and samples.numel() <= _DEVICE_SAMPLES
    return core.scales(largest), samples.view(groups, banks, outputs, columns) if few else None


def _scattered(wanted: int, columns: int) -> Tensor:
    """Return `wanted` column numbers at multiples of the golden ratio, modulo 1: even, in step with no image.

    Columns run over images and locations, so that a fixed stride may meet nothing but the borders of images.
    """
    golden = (math.sqrt(5) - 1) / 2
    return (torch.arange(wanted, dtype=torch.float64) * golden % 1 * columns).long()
