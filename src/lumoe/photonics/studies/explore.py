"""Sweeps over a design space, all designs at once, and what no other design beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import qmc

from lumoe.errors import UserError, nearest
from lumoe.files import read_yaml
from lumoe.photonics.accelerators.choices import ALIASES
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import Accelerator
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import Array, ConvolutionShapes, convolution_shapes
from lumoe.progress import track
from lumoe.resources import data_path

# Objective -> whether less is better.
OBJECTIVES = {"time_s": True, "energy_j": True, "area_mm2": True, "bits": False}
COLUMNS = ("design", "device_set", "network", "time_s", "energy_j", "area_mm2", "bits", "gop_per_s", "gop_per_s_per_w")
# Layers × designs of one evaluation: its some sixty arrays stay below about 500 MB.
_CHUNK = 1_000_000

Space = dict[str, list[float]]


def default_space(accelerator: Accelerator, path: str | Path | None = None) -> Space:
    """Return the levels of the shipped design space, by name.

    Raises:
        UserError: the file is not a design space, or has none for this accelerator.
    """
    document = read_yaml(path or data_path("design-space.yaml"))
    try:
        return {name: [float(x) for x in entry["levels"]] for name, entry in document[accelerator.name].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path}: not a design space for '{accelerator.name}'; it needs NAME: {{levels: [...]}}"
        ) from None


def parse_levels(text: str) -> tuple[str, list[float]]:
    """Return the name and levels of ``name=a,b,c``.

    Raises:
        UserError: not of that form.
    """
    name, equals, values = text.partition("=")
    try:
        levels = [float(value) for value in values.split(",")]
    except ValueError:
        levels = []
    if not equals or not levels or not np.isfinite(levels).all():
        raise UserError(f"'{text}' is not of the form NAME=VALUE,VALUE,...")
    return ALIASES.get(name.strip(), name.strip()), levels


def designs(space: Space, points: int, seed: int) -> dict[str, Array]:
    """Return the designs [P] of a space: every combination if there are at most `points`, else a Sobol sample.

    Raises:
        UserError: fewer than one point asked for.
    """
    if points < 1:
        raise UserError(f"the number of designs is {points}, but must be at least 1")
    if not space:
        return {}
    sizes = [len(levels) for levels in space.values()]
    if prod(sizes) <= points:
        indices = np.stack([axis.ravel() for axis in np.indices(sizes)], axis=1)
    else:
        sampler = qmc.Sobol(len(sizes), rng=np.random.default_rng(seed))
        # Sobol points come in powers of two; the first of them are still spread evenly.
        uniform = sampler.random_base2(max(0, int(np.ceil(np.log2(points)))))[:points]
        indices = np.minimum((uniform * sizes).astype(int), np.asarray(sizes) - 1)
    return {name: np.asarray(levels)[indices[:, row]] for row, (name, levels) in enumerate(space.items())}


def explore(network: Network, bases: Sequence[DesignPoint], space: Space, *, points: int, seed: int) -> pd.DataFrame:
    """Return one row per design: its levels, then time, energy, area (of all convolutions), bits and efficiency.

    Args:
        bases: design points of one accelerator, on one or more device sets; each is combined with every design of the
            space.
        space: levels by name, in the unit of the device file.
        points: at most so many designs, shared evenly by the bases.

    Raises:
        UserError: a name is neither a design choice nor a device parameter, or a level is impossible.
    """
    shapes = convolution_shapes(network.convolutions())
    operations = 2 * float(shapes.macs.sum())
    blocks = []
    for base in bases:
        known = [*base.accelerator.choices, *base.devices.parameters]
        if unknown := [name for name in space if name not in known]:
            raise UserError(f"unknown name '{unknown[0]}' in the design space{nearest(unknown[0], known)}")
        levels = designs(space, max(1, points // len(bases)), seed)
        block = pd.DataFrame(
            {"design": base.accelerator.name, "device_set": base.devices.name, "network": network.name, **levels},
            index=range(len(next(iter(levels.values()), [0]))),
        )
        block = block.assign(**_figures(shapes, base, levels, len(block)))
        block["gop_per_s"] = operations * 1e-9 / block["time_s"]
        block["gop_per_s_per_w"] = operations * 1e-9 / block["energy_j"]
        blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def _figures(shapes: ConvolutionShapes, base: DesignPoint, levels: Mapping[str, Array], count: int) -> dict[str, Array]:
    """The objectives of `count` designs, [count] each."""
    step = max(1, _CHUNK // len(shapes.names))
    parts: list[list[Array]] = []
    for start in track(range(0, count, step), "parts of the design space"):
        found = base.sweep(shapes, {name: column[start : start + step] for name, column in levels.items()})
        width = min(step, count - start)
        figures = (found.total_time_s, found.total_energy_j, found.total_area_m2 * 1e6, found.least_bits)
        parts.append([np.broadcast_to(figure, (width,)) for figure in figures])
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return dict(zip(OBJECTIVES, columns, strict=True))


def not_dominated(costs: Array) -> npt.NDArray[np.bool_]:
    """Return which rows of `costs` [P, objectives], all to be small, no other row beats: the Pareto set, [P].

    A row is beaten by one that is nowhere worse and somewhere better; equal rows stay together.
    """
    # Rows with a small sum of ranks first: they beat most others, so that few comparisons are left.
    ranks = np.argsort(np.argsort(costs, axis=0, kind="stable"), axis=0, kind="stable").sum(axis=1)
    left = np.argsort(ranks, kind="stable")
    position = 0
    while position < len(left):
        row, others = costs[left[position]], costs[left]
        keep = (others < row).any(axis=1) | (others == row).all(axis=1)
        position = int(keep[:position].sum()) + 1
        left = left[keep]
    found = np.zeros(len(costs), dtype=bool)
    found[left] = True
    return found


def pareto(table: pd.DataFrame, *, least_bits: float) -> pd.DataFrame:
    """Return the designs with at least `least_bits` that no other such design beats in all objectives, fastest first.

    Raises:
        UserError: no design reaches that many bits.
    """
    usable = table[table["bits"] >= least_bits]
    if usable.empty:
        most = table["bits"].max()
        raise UserError(f"no design reaches {least_bits:g} bits (the most is {most:.2f}); raise laser_channel_power")
    signs = np.array([1.0 if less else -1.0 for less in OBJECTIVES.values()])
    front = usable[not_dominated(usable[list(OBJECTIVES)].to_numpy() * signs)]
    return front.sort_values([*OBJECTIVES], kind="stable").reset_index(drop=True)
