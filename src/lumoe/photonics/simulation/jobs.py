"""What a design point does with each layer, as jobs for the simulation: passes, their stages and line buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lumoe.photonics.accelerators import pcnna, winograd
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import PCNNA, WINOGRAD, pcnna_design, winograd_design
from lumoe.photonics.devices import Values
from lumoe.photonics.network.layers import Layer
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.simulation.events import Job, LineBuffer, Stage


def jobs_of(point: DesignPoint, layers: Sequence[Layer], *, cache_bits: float | None = None) -> list[Job]:
    """Return the passes of a design point over convolution layers, in the order in which they run.

    Args:
        cache_bits: what the SRAM holds; as in the device set unless given, infinite for one without limit.

    Raises:
        UserError: a choice is out of range.
    """
    values = point.devices.values()
    if cache_bits is not None:
        values["sram_capacity"] = cache_bits
    return _JOBS[point.accelerator.name](layers, values, point.choices)


def _pcnna_jobs(layers: Sequence[Layer], values: dict[str, float], choices: Values) -> list[Job]:
    """PCNNA's passes over each layer.

    A line buffer that cannot hold the rows of one window is of no use: then every location fetches its new inputs
    from DRAM by itself. Partial sums that do not fit either go to DRAM and come back. The cache is `sram_capacity`
    bits, or unlimited if that is infinite.
    """
    design, shapes = pcnna_design(choices), convolution_shapes(layers)
    passes = pcnna.passes(shapes, design)[:, 0]
    fresh = pcnna.new_inputs(shapes)[:, 0]
    counted = design.counted
    word = values["data_bits"] / 8
    cache = values["sram_width"] / 8 / values["sram_access"] if "sram" in counted else np.inf
    memory = values["dram_bandwidth"] if "dram" in counted else np.inf
    jobs = []
    for layer, n_passes, new in zip(layers, passes, fresh, strict=True):
        count = int(n_passes)
        inputs, outputs = new / count * word, layer.out_channels * word
        converters = min(float(np.asarray(design.adcs)), layer.out_channels)
        adc = layer.out_channels / (converters * values["adc_rate"]) if "adcs" in counted else 0.0
        row = layer.in_side[1] * layer.in_channels * word / count
        held = min(values["sram_capacity"] / 8 / row, 1e9)
        lines, stages = None, []
        if "dram" in counted and held >= _window_height(layer):
            lines = _line_buffer(layer, row / memory, int(held))
        elif "dram" in counted:
            stages.append(Stage("dram", inputs / memory))
        weights = layer.held / count
        images = 1 if layer.rewritten else int(np.asarray(design.batch))
        write = weights / (values["weight_dacs"] * values["dac_rate"]) if "weight_dacs" in counted else 0.0
        load = weights * word / memory if "weight_dacs" in counted else 0.0
        settle = values["thermo_optic_settling"] if "settling" in counted else 0.0
        spills = count > 1 and "dram" in counted and layer.locations * outputs > values["sram_capacity"] / 8
        for number, repeats in _kinds(count):
            partial = outputs if number > 0 else 0.0
            stored = outputs if spills or number == count - 1 else 0.0
            returned = partial / memory if spills else 0.0
            steps = [
                *stages, Stage("dram", returned), Stage("sram", (inputs + partial) / cache),
                Stage("input_dacs", new / count / (values["input_dacs"] * values["dac_rate"])),
                Stage("optical_core", 1 / values["clock"]), Stage("adcs", adc), Stage("sram", outputs / cache),
                Stage("dram", stored / memory),
            ]  # fmt: skip
            jobs.append(
                Job(
                    layer.name, tuple(step for step in steps if step.seconds > 0), layer.locations,
                    max(write, load) + settle, images, repeats, lines, bool(stages) or spills,
                )
            )  # fmt: skip
    return jobs


def _kinds(passes: int) -> list[tuple[int, int]]:
    """The passes that differ, as (number, how many like it): the first, those in between, the last."""
    between = [(1, passes - 2)] if passes > 2 else []
    return [(0, 1), *between, *([(passes - 1, 1)] if passes > 1 else [])]


def _window_height(layer: Layer) -> int:
    return layer.dilation[0] * (layer.kernel[0] - 1) + 1


def _line_buffer(layer: Layer, seconds: float, capacity: int) -> LineBuffer:
    rows, height, step, above = layer.out_side[0], layer.in_side[0], layer.stride[0], layer.padding[0]
    ends = [min(height, max(0, row * step - above + _window_height(layer))) for row in range(rows)]
    starts = [min(height, max(0, (row + 1) * step - above)) for row in range(rows)]
    # Rows that no window ever reads are loaded neither; the last row of outputs frees what is left.
    starts[-1] = ends[-1]
    # Images lie one below the other.
    needed, freed = (
        tuple(image * ends[-1] + row for image in range(layer.images) for row in one) for one in (ends, starts)
    )
    return LineBuffer("dram", seconds, capacity, needed, freed)


def _winograd_jobs(layers: Sequence[Layer], values: dict[str, float], choices: Values) -> list[Job]:
    """The Winograd accelerator's passes over each layer; an item is one tile position.

    A cache that cannot hold a pass's inputs and partial sums sends them to DRAM: inputs come again for every group of
    kernels, partial sums go and come back for every group of channels.
    """
    design, shapes = winograd_design(choices), convolution_shapes(layers)
    work = winograd.divide(shapes, values, design)
    times = winograd.resource_times(shapes, values, design)
    passes = np.broadcast_to(work.passes, times["sram"].shape)
    word = values["data_bits"] / 8
    jobs = []
    for row, layer in enumerate(layers):
        tiles, n_passes = int(work.tiles[row, 0]), int(passes[row, 0])
        items = tiles * n_passes
        groups, kernel_groups = work.channel_groups[row, 0], work.kernel_groups[row, 0]
        channels = work.channels[row, 0] / groups
        read = work.fresh_inputs[row, 0] * channels * word / values["sram_bandwidth"]
        # Of the closed form's traffic, results leave behind the core; inputs and weights come before it.
        results = layer.out_channels * layer.locations * word
        spilled = {"inputs": 0.0, "sums": 0.0}
        if design.memory and _pass_bytes(layer, groups, kernel_groups, word) > values["sram_capacity"] / 8:
            inputs = layer.images * layer.in_channels * layer.in_side[0] * layer.in_side[1]
            spilled["inputs"] = inputs * word * (kernel_groups - 1)
            spilled["sums"] = results * 2 * (2 * groups - 2)
        stored = results / values["dram_bandwidth"] if design.memory else 0.0
        fetch = times["dram"][row, 0] - stored + spilled["inputs"] / values["dram_bandwidth"]
        steps = [
            Stage("dram", fetch / items), Stage("sram", read), Stage("optical_core", 1 / values["clock"]),
            Stage("sram", max(times["sram"][row, 0] / items - read, 0.0)),
            Stage("dram", (stored + spilled["sums"] / values["dram_bandwidth"]) / items),
        ]  # fmt: skip
        jobs.append(
            Job(
                layer.name, tuple(step for step in steps if step.seconds > 0), tiles, values["weight_settling"],
                1 if layer.rewritten else int(np.asarray(design.batch)), n_passes, refetches=any(spilled.values()),
            )
        )  # fmt: skip
    return jobs


def _pass_bytes(layer: Layer, groups: float, kernel_groups: float, word: float) -> float:
    """What one pass keeps in the cache: the inputs of its channels, and partial sums if channels come in groups."""
    inputs = layer.in_channels / layer.groups / groups * layer.in_side[0] * layer.in_side[1]
    sums = 2 * layer.out_channels / layer.groups / kernel_groups * layer.locations if groups > 1 else 0.0
    return (inputs + sums) * word


_JOBS: Mapping[str, Callable[[Sequence[Layer], dict[str, float], Values], list[Job]]] = {
    PCNNA.name: _pcnna_jobs,
    WINOGRAD.name: _winograd_jobs,
}
