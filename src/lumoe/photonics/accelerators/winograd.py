"""The Winograd photonic accelerator in closed form: time, power and area of each convolution.

Mehrabian et al., "A Winograd-Based Integrated Photonics Accelerator for Convolutional Neural Networks", IEEE JSTQE
26(1), 6100312 (2020), arXiv 1906.10487. Its device numbers, clock and tile are not public: this is a reconstruction.
Buffer → input transform → DACs → modulated source → microrings held by analog memories (the transformed kernels) →
sum over wavelengths (input channels) on photodiodes → inverse transform → ADCs → buffer.

One tile position of `channels` input channels meets `kernels` kernels per clock. Layers whose channels or kernels are
more take several passes, one for each group of channels and of kernels; partial sums return to the buffer.

Arrays: a layer quantity is [L, 1], a design quantity [P] or a scalar, a result [L, P].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lumoe.photonics import cook_toom
from lumoe.photonics.accelerators import resources
from lumoe.photonics.accelerators import tiling as tiles
from lumoe.photonics.accelerators.checks import Needs, require_counts, require_switches
from lumoe.photonics.accelerators.resources import Names, aligned
from lumoe.photonics.devices import Number, Values
from lumoe.photonics.network.shapes import Array, ConvolutionShapes

STREAMS = ("optical_core", "sram", "dram")
PREPARATIONS = ("settling",)
NEEDS = Needs(
    "the Winograd accelerator",
    counts=("channels", "kernels", "signed_rails"),
    rates=("clock", "dram_bandwidth", "sram_bandwidth", "adc_bits", "data_bits", "sram_macro"),
    others=(
        "weight_settling", "memristor_bits", "laser_channel_power", "laser_area", "ring_power", "ring_area",
        "modulator_power", "modulator_area", "dac_energy", "dac_area", "tia_energy", "tia_area", "adc_fom", "adc_area",
        "adder_energy", "sram_energy", "sram_capacity", "sram_area", "dram_energy",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Design:
    """What an architect chooses, beside the device parameters; each may be an array [P].

    Attributes:
        tile: m of F(m×m, r×r); 1 is direct convolution.
        batch: images that share one programming of the weights.
        analog_inverse: 1: the inverse transform comes before the ADCs (m² samples a tile); 0: after them (n² samples).
        memory: 1: weights and feature maps come from DRAM; 0: all transformed weights rest in analog memories on the
            chip and DRAM is not counted, the scope in which the electronic chips report their power.
    """

    tile: Number = 2.0
    batch: Number = 1.0
    analog_inverse: Number = 1.0
    memory: Number = 0.0

    def check(self) -> Design:
        """Return the design if its counts are possible.

        Raises:
            UserError: a count that is not a whole number of at least 1, or a switch that is neither 0 nor 1.
        """
        require_counts(vars(self), ("tile", "batch"))
        require_switches(vars(self), ("analog_inverse", "memory"))
        return self


@dataclass(frozen=True)
class Work:
    """How a layer is cut up, [L, P] each.

    `fresh_inputs` are the inputs of a tile and channel that its left neighbour did not hold yet, averaged over a row of
    tiles: n(m·columns + r − 1)/columns, since a row starts with a whole window and then moves by m pixels.
    """

    m: Array
    n: Array
    rails: Array
    tiles: Array
    channels: Array
    channel_groups: Array
    kernel_groups: Array
    groups: Array
    fresh_inputs: Array

    @property
    def passes(self) -> Array:
        """How often all tiles of a layer are gone through."""
        return self.channel_groups * self.kernel_groups * self.groups


def divide(shapes: ConvolutionShapes, values: Values, design: Design) -> Work:
    """Return how each layer is cut into tiles and passes."""
    m = tiles.effective_tile(shapes, np.asarray(design.tile, dtype=float))
    r = tiles.phase_kernel(shapes)
    channels = shapes.in_channels / shapes.groups * tiles.phases(shapes)
    # A dilation d splits the outputs into d² interleaved images, each tiled by itself.
    columns = np.ceil(shapes.out_width / (shapes.dilation * m))
    rows = np.ceil(shapes.out_height / (shapes.dilation * m))
    return Work(
        m=m,
        n=m + r - 1,
        # Transformed inputs are signed, so each needs a pair of intensities; a ReLU's output does not.
        rails=np.where(m > cook_toom.DIRECT, np.asarray(values["signed_rails"], dtype=float), 1.0),
        tiles=shapes.dilation**2 * rows * columns,
        channels=channels,
        channel_groups=np.ceil(channels / np.asarray(values["channels"], dtype=float)),
        kernel_groups=np.ceil(shapes.kernels / shapes.groups / np.asarray(values["kernels"], dtype=float)),
        groups=shapes.groups,
        fresh_inputs=(m + r - 1) * (m * columns + r - 1) / columns,
    )


def resource_times(shapes: ConvolutionShapes, values: Values, design: Design) -> dict[str, Array]:
    """Return the time per image that each resource needs, in seconds, [L, P] each; `settling` adds to the slowest."""
    work = divide(shapes, values, design)
    bits = _traffic_bits(shapes, values, design, work)
    times = {
        "optical_core": work.tiles * work.passes / np.asarray(values["clock"]),
        "sram": bits["sram"] / 8 / np.asarray(values["sram_bandwidth"]),
        "dram": bits["dram"] / 8 / np.asarray(values["dram_bandwidth"]),
        "settling": work.passes * np.asarray(values["weight_settling"]) / np.asarray(design.batch, dtype=float),
    }
    return aligned(times)


def total_time(times: Mapping[str, Array]) -> tuple[Array, Names]:
    """Return the time per image [L, P] in seconds and the name of the resource that takes most of it, [L, P]."""
    return resources.total_time(times, STREAMS, PREPARATIONS)


def energy(shapes: ConvolutionShapes, values: Values, design: Design, duration_s: Array) -> dict[str, Array]:
    """Return the energy per image of each component in joules, [L, P] each.

    A signed input is a pair of lit waveguides, of which the rings weight one through their input and the other through
    their add port: rings are not doubled, light is. Behind DRAM the transformed weights are written anew for each
    batch, by converters like those of the inputs. Additions are counted at the energy of digital ones wherever the
    inverse transform is made, and those of partial sums with them.

    Args:
        duration_s: how long rings, lasers and modulators are on for one image, [L, P].
    """
    work = divide(shapes, values, design)
    bits = _traffic_bits(shapes, values, design, work)
    held = work.n**2 * np.asarray(values["channels"]) * np.asarray(values["kernels"])
    driven = work.tiles * work.n**2 * work.channels * work.kernel_groups * work.groups * work.rails
    written = work.n**2 * work.channels * shapes.kernels * np.asarray(design.memory) / np.asarray(design.batch)
    samples = work.tiles * work.channel_groups * shapes.kernels
    detected, converted = samples * work.n**2, samples * _converted(work, design)
    sums = (
        work.tiles * work.channels * work.groups * work.kernel_groups * _additions(work, 0)
        + samples * _additions(work, 1)
        + shapes.outputs * (work.channel_groups - 1)
    )
    parts = {
        "laser": held * work.rails * values["laser_channel_power"] * duration_s,
        "rings": held * values["ring_power"] * duration_s,
        "modulators": work.n**2 * work.rails * values["channels"] * values["modulator_power"] * duration_s,
        "dacs": (driven + written) * values["dac_energy"],
        "amplifiers": detected * values["tia_energy"],
        "adcs": converted * values["adc_fom"] * 2.0 ** np.asarray(values["adc_bits"]),
        "transforms": sums * values["adder_energy"],
        "sram": (bits["sram"] + bits["filled"]) * values["sram_energy"],
        "dram": bits["dram"] * values["dram_energy"],
    }
    return {name: np.broadcast_to(part, duration_s.shape) for name, part in parts.items()}


def area(shapes: ConvolutionShapes, values: Values, design: Design) -> dict[str, Array]:
    """Return the area of each component that a layer needs, in m², [L, P] each."""
    work = divide(shapes, values, design)
    colours, kernels = np.asarray(values["channels"], dtype=float), np.asarray(values["kernels"], dtype=float)
    driven = work.n**2 * colours * work.rails
    parts = {
        "lasers": colours * values["laser_area"],
        "modulators": driven * values["modulator_area"],
        "dacs": driven * values["dac_area"],
        "rings": work.n**2 * colours * kernels * values["ring_area"],
        "amplifiers": work.n**2 * kernels * values["tia_area"],
        "adcs": _converted(work, design) * kernels * values["adc_area"],
        "sram": np.asarray(values["sram_area"]) * np.asarray(values["sram_capacity"]) / values["sram_macro"],
    }
    return aligned(parts)


def _converted(work: Work, design: Design) -> Array:
    return np.where(np.asarray(design.analog_inverse) > 0, work.m, work.n) ** 2


def noise_loss_bits(shapes: ConvolutionShapes, design: Design) -> Array:
    """Return the bits that the inverse transform of a layer's tile takes from its detectors' bits, [L, P]."""
    m = tiles.effective_tile(shapes, np.asarray(design.tile, dtype=float))
    loss: Array = np.log2(tiles.per_tile(cook_toom.noise_gain, m, tiles.phase_kernel(shapes))) / 2
    return loss


def output_bits(shapes: ConvolutionShapes, values: Values, design: Design, detector_bits: Number) -> Array:
    """Return the bits of an output, [L, P], not below 0.

    Noise of the detectors and error of the weights pass through the inverse transform; so does the rounding of the
    ADCs where they stand before it.
    """
    loss = noise_loss_bits(shapes, design)
    taps = np.minimum(detector_bits, np.asarray(values["memristor_bits"])) - loss
    converters = np.asarray(values["adc_bits"]) - np.where(np.asarray(design.analog_inverse) > 0, 0.0, loss)
    bits: Array = np.maximum(np.minimum(taps, converters), 0.0)
    return bits


def _traffic_bits(shapes: ConvolutionShapes, values: Values, design: Design, work: Work) -> dict[str, Array]:
    """Bits through the buffer's port to the core, through its port to DRAM (`filled`), and through DRAM's own."""
    word = np.asarray(values["data_bits"], dtype=float)
    read = work.tiles * work.fresh_inputs * work.channels * work.groups * work.kernel_groups * word
    # Partial sums carry twice the word: written and read back once for each group of channels but the last.
    sums = shapes.outputs * (4 * (work.channel_groups - 1) + 1) * word
    images = (shapes.inputs + shapes.outputs) * word * np.asarray(design.memory, dtype=float)
    weights = shapes.weights / np.asarray(design.batch, dtype=float) * word * np.asarray(design.memory, dtype=float)
    return {"sram": read + sums, "filled": images, "dram": images + weights}


def _additions(work: Work, which: int) -> Array:
    """Additions per tile of the input (0) or the inverse (1) transform, [L, P]."""
    return tiles.per_tile(lambda m, r: cook_toom.additions(m, r)[which], work.m, work.n - work.m + 1)
