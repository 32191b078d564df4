"""PCNNA in closed form: rings, time, energy and area of each convolution, as the paper has them and with what it omits.

Mehrabian et al., "PCNNA: A Photonic Convolutional Neural Network Accelerator", IEEE SOCC 2018, arXiv 1807.08792.
DRAM → SRAM → input DACs → modulators → one microring bank per kernel → balanced photodiodes → ADCs → SRAM → DRAM.
Layers run one after another; every kernel sees one location per optical clock.

Arrays: a layer quantity is [L, 1], a design quantity [P] or a scalar, a result [L, P].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lumoe.photonics.accelerators import resources
from lumoe.photonics.accelerators.checks import Needs, require_counts, require_switches
from lumoe.photonics.accelerators.resources import Names, aligned
from lumoe.photonics.devices import Number, Values
from lumoe.photonics.network.shapes import Array, ConvolutionShapes

# What runs at the same time in a layer: the slowest bounds it. What must happen before: it adds.
STREAMS = ("optical_core", "input_dacs", "adcs", "sram", "dram")
PREPARATIONS = ("weight_dacs", "settling")
BOUNDS = ("weight_dacs", "settling", "adcs", "sram", "dram")
NEEDS = Needs(
    "PCNNA",
    counts=("input_dacs", "weight_dacs"),
    rates=("clock", "dac_rate", "adc_rate", "dram_bandwidth", "sram_width", "sram_access", "data_bits"),
    others=(
        "thermo_optic_settling", "laser_channel_power", "laser_area", "ring_power", "ring_pitch", "dac_energy",
        "dac_area", "modulator_energy", "modulator_area", "tia_power", "tia_area", "adc_power", "adc_area",
        "sram_energy", "sram_area", "dram_energy",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Design:
    """What an architect chooses, beside the device parameters; each may be an array [P].

    Attributes:
        batch: images that share one programming of the weights.
        channels: wavelengths on one waveguide; infinite as in the paper, where every kernel input has its own.
        in_time: 0: groups of wavelengths stand side by side on banks of their own; 1: they follow in time on one bank.
        adcs: number of ADCs; infinite is one for each kernel.
        bounds: which of `BOUNDS` count; none of them does in the paper.
    """

    batch: Number = 1.0
    channels: Number = np.inf
    in_time: Number = 0.0
    adcs: Number = np.inf
    bounds: frozenset[str] = field(default_factory=frozenset)

    def check(self) -> Design:
        """Return the design if its counts are possible.

        Raises:
            UserError: a count that is not a whole number of at least 1, or a switch that is neither 0 nor 1.
        """
        require_counts(vars(self), ("batch",))
        require_counts(vars(self), ("channels", "adcs"), endless=True)
        require_switches(vars(self), ("in_time",))
        return self

    @property
    def counted(self) -> frozenset[str]:
        """The resources whose time counts: what the paper counts, and the bounds."""
        return self.bounds | {"optical_core", "input_dacs"}

    def with_bounds(self, *bounds: str) -> Design:
        """Return the same design with these bounds."""
        return replace(self, bounds=frozenset(bounds))


def rings(shapes: ConvolutionShapes, *, filtered: bool = True) -> Array:
    """Return the rings of each layer, [L, 1]: K·N_kernel, or N_input·K·N_kernel if every input meets every weight."""
    return shapes.weights if filtered else shapes.inputs * shapes.weights


def new_inputs(shapes: ConvolutionShapes) -> Array:
    """Return the inputs that are new at each location, n_c·m·s (never more than the kernel holds), [L, 1].

    Locations follow one another along a row. A dilated kernel meets its own columns again only where the stride is a
    multiple of the dilation; elsewhere its whole window is new.
    """
    again = np.mod(shapes.stride_width, shapes.dilation_width) == 0
    columns = np.where(again, shapes.stride_width / shapes.dilation_width, shapes.kernel_width)
    return shapes.in_channels * shapes.kernel_height * np.minimum(columns, shapes.kernel_width)


def wavelength_groups(shapes: ConvolutionShapes, design: Design) -> Array:
    """Return into how many groups of at most `channels` wavelengths a kernel is split, [L, P].

    A group holds whole rows of the kernel where it can: a value that the window keeps when it moves on goes to another
    wavelength of its row, so that it stays within its group, and splitting costs no further conversions.
    """
    channels = colours(shapes, design)
    rows = shapes.kernel_height * shapes.in_channels / shapes.groups
    whole_rows = np.ceil(rows / np.maximum(np.floor(channels / shapes.kernel_width), 1))
    cut_rows = rows * np.ceil(shapes.kernel_width / channels)
    groups: Array = np.where(channels >= shapes.kernel_width, whole_rows, cut_rows)
    return groups


def passes(shapes: ConvolutionShapes, design: Design) -> Array:
    """Return how often all locations of a layer are gone through, [L, P]."""
    return np.where(np.asarray(design.in_time) > 0, wavelength_groups(shapes, design), 1.0)


def utilisation(shapes: ConvolutionShapes, design: Design) -> Array:
    """Return the share of a bank's wavelengths that carry an input of the kernel, [L, P]; the others stay dark."""
    lit = wavelength_groups(shapes, design) * colours(shapes, design)
    return shapes.kernel_inputs / lit


def resource_times(shapes: ConvolutionShapes, values: Values, design: Design) -> dict[str, Array]:
    """Return the time per image that each resource would need alone, in seconds, [L, P] each.

    All resources are given; `design.bounds` says which of them `total_time` counts.
    """
    n_passes = passes(shapes, design)
    batch = shapes.sharing(design.batch)
    byte = np.asarray(values["data_bits"]) / 8
    converters = np.minimum(np.asarray(design.adcs, dtype=float), shapes.kernels)
    partial_sums = shapes.outputs * (2 * n_passes - 1)
    cache_bytes = (shapes.locations * new_inputs(shapes) + partial_sums) * byte
    cache_rate = np.asarray(values["sram_width"]) / 8 / np.asarray(values["sram_access"])
    weight_time = shapes.weights / (np.asarray(values["weight_dacs"]) * np.asarray(values["dac_rate"]))
    # Weights come from DRAM while the DACs write them; without the DRAM bound they wait in a cache of any size.
    if "dram" in design.bounds:
        weight_time = np.maximum(weight_time, shapes.weights * byte / np.asarray(values["dram_bandwidth"]))
    times = {
        "optical_core": shapes.locations * n_passes / np.asarray(values["clock"]),
        "input_dacs": (
            shapes.locations * new_inputs(shapes)
            / (np.asarray(values["input_dacs"]) * np.asarray(values["dac_rate"]))
        ),
        "adcs": shapes.outputs * n_passes / (converters * np.asarray(values["adc_rate"])),
        "sram": cache_bytes / cache_rate,
        "dram": (shapes.inputs + shapes.outputs) * byte / np.asarray(values["dram_bandwidth"]),
        "weight_dacs": weight_time / batch,
        "settling": n_passes * np.asarray(values["thermo_optic_settling"]) / batch,
    }  # fmt: skip
    return aligned(times)


def total_time(times: Mapping[str, Array], design: Design) -> tuple[Array, Names]:
    """Return the time per image [L, P] in seconds and the name of the resource that takes most of it, [L, P]."""
    streams, preparations = ([x for x in names if x in design.counted] for names in (STREAMS, PREPARATIONS))
    return resources.total_time(times, streams, preparations)


def energy(shapes: ConvolutionShapes, values: Values, design: Design, duration_s: Array) -> dict[str, Array]:
    """Return the energy per image of each component in joules, [L, P] each.

    A modulator takes a new symbol at every location, whether its value is converted anew or shifted along its row. The
    SRAM is read for what is converted, written and read for partial sums and outputs, and written for what DRAM brings.

    Args:
        duration_s: how long rings, lasers and amplifiers are on for one image, [L, P].
    """
    n_passes, banks = passes(shapes, design), _banks(shapes, design)
    batch = shapes.sharing(design.batch)
    bits = np.asarray(values["data_bits"])
    conversions = shapes.locations * new_inputs(shapes)
    samples = shapes.outputs * n_passes
    held = _held(shapes, design)
    cached = conversions + shapes.inputs + 2 * samples
    moved = shapes.inputs + shapes.outputs + shapes.weights / batch
    parts = {
        "laser": held * values["laser_channel_power"] * duration_s,
        "rings": held * values["ring_power"] * duration_s,
        "input_dacs": conversions * values["dac_energy"],
        "weight_dacs": shapes.weights / batch * values["dac_energy"],
        "modulators": shapes.locations * shapes.window_inputs * values["modulator_energy"],
        "amplifiers": shapes.kernels * banks * values["tia_power"] * duration_s,
        "adcs": samples * np.asarray(values["adc_power"]) / values["adc_rate"],
        "sram": cached * bits * values["sram_energy"],
        "dram": moved * bits * values["dram_energy"],
    }
    return {name: np.broadcast_to(part, duration_s.shape) for name, part in parts.items()}


def area(shapes: ConvolutionShapes, values: Values, design: Design) -> dict[str, Array]:
    """Return the area of each component that a layer needs, in m², [L, P] each.

    The accelerator itself needs the largest of its layers, component by component. Groups that follow in time share
    the modulators; groups side by side share the lasers.
    """
    lit = colours(shapes, design)
    driven = np.where(np.asarray(design.in_time) > 0, lit * shapes.groups, shapes.window_inputs)
    converters = np.minimum(np.asarray(design.adcs, dtype=float), shapes.kernels)
    parts = {
        "rings": _held(shapes, design) * np.asarray(values["ring_pitch"]) ** 2,
        "modulators": driven * np.asarray(values["modulator_area"]),
        "lasers": lit * np.asarray(values["laser_area"]),
        "dacs": (np.asarray(values["input_dacs"]) + values["weight_dacs"]) * values["dac_area"],
        "amplifiers": shapes.kernels * _banks(shapes, design) * np.asarray(values["tia_area"]),
        "adcs": converters * np.asarray(values["adc_area"]),
        "sram": np.asarray(values["sram_area"], dtype=float),
    }
    return aligned(parts)


def colours(shapes: ConvolutionShapes, design: Design) -> Array:
    """Return the wavelengths that a kernel uses, [L, P]: of more than it has inputs the rest stay dark."""
    used: Array = np.minimum(np.asarray(design.channels, dtype=float), shapes.kernel_inputs)
    return used


def _banks(shapes: ConvolutionShapes, design: Design) -> Array:
    """Banks of one kernel that stand side by side, [L, P]."""
    return np.where(np.asarray(design.in_time) > 0, 1.0, wavelength_groups(shapes, design))


def _held(shapes: ConvolutionShapes, design: Design) -> Array:
    """Rings that hold a weight at any time, [L, P]."""
    return shapes.weights / passes(shapes, design)
