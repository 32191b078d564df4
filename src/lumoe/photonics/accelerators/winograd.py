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

    `points` are the products of a tile, a channel and a kernel, each with a ring of its own: n² of a tile, or the taps
    of the kernel where the convolution is direct. `r` is the kernel side that the transforms see, 1 without any.
    `fresh_inputs` are the inputs of a tile and channel that its left neighbour did not hold yet, averaged over a row of
    tiles: n(m·columns + r − 1)/columns, since a row starts with a whole window and then moves by m pixels.
    """

    m: Array
    r: Array
    points: Array
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
    direct = m <= cook_toom.DIRECT
    r = np.where(direct, 1.0, tiles.phase_kernel(shapes))
    n = m + r - 1
    channels = shapes.in_channels / shapes.groups * np.where(direct, 1.0, tiles.phases(shapes))
    # A dilation d splits the outputs into d² interleaved images, each tiled by itself.
    columns = np.ceil(shapes.out_width / (shapes.dilation_width * m))
    rows = np.ceil(shapes.out_height / (shapes.dilation_height * m))
    cut = shapes.dilation_height * shapes.dilation_width * shapes.images * rows * columns
    return Work(
        m=m,
        r=r,
        points=np.where(direct, shapes.taps, n**2),
        # Transformed inputs are signed, so each needs a pair of intensities; a ReLU's output does not.
        rails=np.where(direct, 1.0, np.asarray(values["signed_rails"], dtype=float)),
        tiles=np.where(direct, shapes.locations, cut),
        channels=channels,
        channel_groups=np.ceil(channels / np.asarray(values["channels"], dtype=float)),
        kernel_groups=np.ceil(shapes.kernels / shapes.groups / np.asarray(values["kernels"], dtype=float)),
        groups=shapes.groups,
        fresh_inputs=np.where(direct, tiles.fresh_direct_inputs(shapes), n * (m * columns + r - 1) / columns),
    )


def utilisation(shapes: ConvolutionShapes, values: Values, design: Design) -> Array:
    """Return the share of the rings of a pass that hold a weight of the layer, [L, P]; the others stay dark.

    A depthwise layer has one channel a group: it leaves all wavelengths but one and all kernels but one unused.
    """
    work = divide(shapes, values, design)
    lit = work.channels / (work.channel_groups * np.asarray(values["channels"], dtype=float))
    kernels = shapes.kernels / shapes.groups
    used: Array = lit * kernels / (work.kernel_groups * np.asarray(values["kernels"], dtype=float))
    return used


def resource_times(shapes: ConvolutionShapes, values: Values, design: Design) -> dict[str, Array]:
    """Return the time per image that each resource needs, in seconds, [L, P] each; `settling` adds to the slowest."""
    work = divide(shapes, values, design)
    bits = _traffic_bits(shapes, values, design, work)
    times = {
        "optical_core": work.tiles * work.passes / np.asarray(values["clock"]),
        "sram": bits["sram"] / 8 / np.asarray(values["sram_bandwidth"]),
        "dram": bits["dram"] / 8 / np.asarray(values["dram_bandwidth"]),
        "settling": work.passes * np.asarray(values["weight_settling"]) / shapes.sharing(design.batch),
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
    held = work.points * np.asarray(values["channels"]) * np.asarray(values["kernels"])
    driven = work.tiles * work.points * work.channels * work.kernel_groups * work.groups * work.rails
    written = work.points * work.channels * shapes.kernels * _written(shapes, design)
    samples = work.tiles * work.channel_groups * shapes.kernels
    detected, converted = samples * work.points, samples * _converted(work, design)
    sums = (
        work.tiles * work.channels * work.groups * work.kernel_groups * _additions(work, 0)
        + samples * _additions(work, 1)
        + shapes.outputs * (work.channel_groups - 1)
    )
    parts = {
        "laser": held * work.rails * values["laser_channel_power"] * duration_s,
        "rings": held * values["ring_power"] * duration_s,
        "modulators": work.points * work.rails * values["channels"] * values["modulator_power"] * duration_s,
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
    driven = work.points * colours * work.rails
    parts = {
        "lasers": colours * values["laser_area"],
        "modulators": driven * values["modulator_area"],
        "dacs": driven * values["dac_area"],
        "rings": work.points * colours * kernels * values["ring_area"],
        "amplifiers": work.points * kernels * values["tia_area"],
        "adcs": _converted(work, design) * kernels * values["adc_area"],
        "sram": np.asarray(values["sram_area"]) * np.asarray(values["sram_capacity"]) / values["sram_macro"],
    }
    return aligned(parts)


def _converted(work: Work, design: Design) -> Array:
    """Samples of a tile: m² behind the inverse transform, one for each point before it, [L, P]."""
    return np.where(np.asarray(design.analog_inverse) > 0, work.m**2, work.points)


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
    weights = shapes.weights / shapes.sharing(design.batch) * word * np.asarray(design.memory, dtype=float)
    # Weights that are computed from the input lie in the buffer and are read from it.
    computed = shapes.rewritten * shapes.weights * word
    return {"sram": read + sums + computed, "filled": images, "dram": images + weights}


def _written(shapes: ConvolutionShapes, design: Design) -> Array:
    """How often the weights of a layer are written for one input, [L, P]: never, where they rest on the chip."""
    held = np.asarray(design.memory, dtype=float) / shapes.sharing(design.batch)
    return np.where(shapes.rewritten > 0, 1.0, held)


def _additions(work: Work, which: int) -> Array:
    """Additions per tile of the input (0) or the inverse (1) transform, [L, P]."""
    return tiles.per_tile(lambda m, r: cook_toom.additions(m, r)[which], work.m, work.r)
