"""The Winograd photonic accelerator in closed form: time, power and area of each convolution.

Mehrabian et al., "A Winograd-Based Integrated Photonics Accelerator for Convolutional Neural Networks", IEEE JSTQE
26(1), 6100312 (2020), arXiv 1906.10487. Its device numbers, clock and tile are not public: this is a reconstruction.
Buffer → input transform → DACs → modulated source → microrings held by analog memories (the transformed kernels) →
sum over wavelengths (input channels) on photodiodes → inverse transform → ADCs → buffer.

One tile position of `channels` input channels meets `kernels` kernels per clock. Layers whose channels or kernels are
more are swept in passes, one for each group of channels and of kernels; partial sums return to the buffer.

Arrays: a layer quantity is [L, 1], a design quantity [P] or a scalar, a result [L, P].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lumoe.errors import UserError
from lumoe.photonics import tile as tiles
from lumoe.photonics.shapes import Array, ConvolutionShapes

Number = float | Array
Values = Mapping[str, Number]
STREAMS = ("optical_core", "sram", "dram")


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
        """Sweeps over all tiles of a layer."""
        return self.channel_groups * self.kernel_groups * self.groups


def check_values(values: Values) -> None:
    """Raise unless every count and rate is positive.

    Raises:
        UserError: the message names the parameter.
    """
    for name in ("clock", "channels", "kernels", "dram_bandwidth", "sram_bandwidth", "adc_bits"):
        if not np.all(np.asarray(values[name]) > 0):
            raise UserError(f"{name} is {np.min(values[name]):g}, but must be positive")


def divide(shapes: ConvolutionShapes, values: Values, design: Design) -> Work:
    """Return how each layer is cut into tiles and passes."""
    m = tiles.effective_tile(shapes, np.asarray(design.tile, dtype=float))
    r = tiles.phase_kernel(shapes)
    channels = shapes.in_channels / shapes.groups * tiles.phases(shapes)
    columns = np.ceil(shapes.out_width / m)
    return Work(
        m=m,
        n=m + r - 1,
        # Transformed inputs are signed, so each needs a pair of intensities; a ReLU's output does not.
        rails=np.where(m > tiles.DIRECT, np.asarray(values["signed_rails"], dtype=float), 1.0),
        tiles=np.ceil(shapes.out_height / m) * columns,
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
    width = np.broadcast_shapes(*(time.shape for time in times.values()))
    return {name: np.broadcast_to(time, width) for name, time in times.items()}


def total_time(times: Mapping[str, Array]) -> tuple[Array, npt.NDArray[np.str_]]:
    """Return the time per image [L, P] in seconds and the name of the resource that takes most of it, [L, P]."""
    total = np.max([times[name] for name in STREAMS], axis=0) + times["settling"]
    names = np.array([*STREAMS, "settling"])
    return total, names[np.argmax([times[name] for name in names], axis=0)]


def energy(shapes: ConvolutionShapes, values: Values, design: Design, duration_s: Array) -> dict[str, Array]:
    """Return the energy per image of each component in joules, [L, P] each.

    Args:
        duration_s: how long rings, lasers and modulators are on for one image, [L, P].
    """
    work = divide(shapes, values, design)
    bits = _traffic_bits(shapes, values, design, work)
    held = work.n**2 * np.asarray(values["channels"]) * np.asarray(values["kernels"])
    driven = work.tiles * work.n**2 * work.channels * work.kernel_groups * work.groups * work.rails
    samples = work.tiles * work.channel_groups * shapes.kernels
    detected, converted = samples * work.n**2, samples * _converted(work, design)
    into, out = _additions(work)
    sums = work.tiles * (
        work.channels * work.groups * work.kernel_groups * into + work.channel_groups * shapes.kernels * out
    )
    parts = {
        "laser": held * values["laser_channel_power"] * duration_s,
        "rings": held * values["ring_power"] * duration_s,
        "modulators": work.n**2 * work.rails * values["channels"] * values["modulator_power"] * duration_s,
        "dacs": driven * values["dac_energy"],
        "amplifiers": detected * values["tia_energy"],
        "adcs": converted * values["adc_fom"] * 2.0 ** np.asarray(values["adc_bits"]),
        "transforms": sums * values["adder_energy"],
        "sram": bits["sram"] * values["sram_energy"],
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
    width = np.broadcast_shapes(*(np.shape(part) for part in parts.values()))
    return {name: np.broadcast_to(part, width) for name, part in parts.items()}


def _converted(work: Work, design: Design) -> Array:
    return np.where(np.asarray(design.analog_inverse) > 0, work.m, work.n) ** 2


def _traffic_bits(shapes: ConvolutionShapes, values: Values, design: Design, work: Work) -> dict[str, Array]:
    word = np.asarray(values["data_bits"], dtype=float)
    read = work.tiles * work.fresh_inputs * work.channels * work.groups * work.kernel_groups * word
    # Partial sums carry twice the word: written by each group of channels, read back by all but the first.
    sums = shapes.outputs * np.where(work.channel_groups > 1, (2 * work.channel_groups - 1) * 2, 1.0) * word
    fresh = shapes.inputs + shapes.outputs + shapes.weights / np.asarray(design.batch, dtype=float)
    return {"sram": read + sums, "dram": fresh * word * np.asarray(design.memory, dtype=float)}


def _additions(work: Work) -> tuple[Array, Array]:
    """Additions per tile of the input and the inverse transform, [L, P] each."""
    m, n = np.broadcast_arrays(work.m, work.n)
    into, out = np.zeros(m.shape), np.zeros(m.shape)
    for tile in np.unique(m):
        for points in np.unique(n[m == tile]):
            chosen = (m == tile) & (n == points)
            into[chosen], out[chosen] = tiles.additions(int(tile), int(points - tile + 1))
    return into, out
