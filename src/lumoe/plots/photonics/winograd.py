"""Figures of the Winograd photonic accelerator: beside electronic accelerators, and where its power goes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

FIGURES_OF_MERIT = {"gop_per_s": "GOP/s", "power_w": "W", "gop_per_s_per_w": "GOP/s/W"}
# The same figure with as much laser power as the converters' bits need.
NEEDED_LASER = {"power_w": "power_with_needed_laser_w", "gop_per_s_per_w": "gop_per_s_per_w_with_needed_laser"}
# Whether a published number was read in its source, and the shade of its mark.
SHADES = {True: "0.25", False: "0.65"}
COLUMNS = (
    "device_set", "tile", "scope", "feasible_bits", "baseline", "confidence",
    *FIGURES_OF_MERIT, *(f"baseline_{name}" for name in FIGURES_OF_MERIT), *NEEDED_LASER.values(),
)  # fmt: skip
POWER_COLUMNS = ("device_set", "tile", "scope", "layer", "power_w", "power_rings_w")


def _tile_name(tile: int) -> str:
    return "no Winograd" if tile == 1 else f"F({tile}×{tile}, 3×3)"


def draw_winograd(summary: pd.DataFrame, output: str | Path) -> None:
    """Throughput, power and efficiency of every device set and tile, and of every electronic baseline.

    Args:
        summary: the summary table of `lumoe photonics winograd`.
    """
    use_style()
    designs = summary.drop_duplicates(["device_set", "tile", "scope"])
    baselines = summary.drop_duplicates("baseline").sort_values("baseline_gop_per_s_per_w", na_position="first")
    rows = [*reversed(designs["device_set"].unique()), *baselines["baseline"]]
    place = {name: index for index, name in enumerate(reversed(rows))}
    figure, axes = plt.subplots(1, 3, figsize=(PAGE_WIDTH_IN, 4.6), sharey=True)
    for axis, (column, label) in zip(axes, FIGURES_OF_MERIT.items(), strict=True):
        _electronic(axis, baselines, column, place)
        _photonic(axis, designs, column, place)
        axis.set(xscale="log", xlabel=label)
        axis.axhline(len(baselines) - 0.5, color="0.6", linewidth=0.8)
    axes[0].set_yticks(range(len(rows)), list(reversed(rows)))
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    figure.legend(handles=_legend(designs), loc="outside upper center", ncols=5, columnspacing=1.0, handletextpad=0.3)
    basis_note(figure, "photonic: modelled, reconstructed design; electronic: published", 0.035)
    columns = ["device_set", "tile", "scope", *FIGURES_OF_MERIT, *NEEDED_LASER.values(), "feasible_bits"]
    published = ["baseline", *(f"baseline_{name}" for name in FIGURES_OF_MERIT), "confidence"]
    save(figure, output, summary[[*columns, *published]])


def _electronic(axis: Axes, baselines: pd.DataFrame, column: str, place: Mapping[str, int]) -> None:
    for sure, shade in SHADES.items():
        part = baselines[~baselines["confidence"].str.contains("recalled|derived") == sure]
        axis.scatter(
            part[f"baseline_{column}"], part["baseline"].map(place), color=shade, marker="|", s=70, linewidths=2
        )


def _photonic(axis: Axes, designs: pd.DataFrame, column: str, place: Mapping[str, int]) -> None:
    tiles = sorted(designs["tile"].unique())
    for index, tile in enumerate(tiles):
        shift = 0.18 * ((len(tiles) - 1) / 2 - index)
        for scope, face in {"chip": OKABE_ITO[index], "system": "none"}.items():
            part = designs[(designs["tile"] == tile) & (designs["scope"] == scope)]
            height = part["device_set"].map(place) + shift
            axis.scatter(
                part[column], height, marker=MARKERS[index], s=18, facecolor=face, edgecolor=OKABE_ITO[index], zorder=3
            )
            dim = ~part["feasible_bits"] & (scope == "chip")
            if column in NEEDED_LASER and dim.any():
                needed = part.loc[dim, NEEDED_LASER[column]]
                axis.scatter(needed, height[dim], marker="x", s=14, linewidths=1, color=OKABE_ITO[index], zorder=4)


def _legend(designs: pd.DataFrame) -> list[Line2D]:
    def mark(marker: str, label: str, colour: str = "0.2", face: str | None = None, size: float = 5) -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=marker, color=colour, markerfacecolor=face or colour, markersize=size,
            markeredgewidth=2 if marker == "|" else 1, label=label,
        )  # fmt: skip

    tiles = sorted(designs["tile"].unique())
    return [
        *(mark(MARKERS[i], _tile_name(tile), OKABE_ITO[i]) for i, tile in enumerate(tiles)),
        mark("o", "chip alone"),
        mark("o", "with DRAM", face="none"),
        mark("x", "chip, laser as bright as its bits need"),
        mark("|", "electronic, read", SHADES[True], size=8),
        mark("|", "electronic, recalled or derived", SHADES[False], size=8),
    ]


def draw_winograd_power(layers: pd.DataFrame, output: str | Path) -> None:
    """Where the power goes: one stacked bar per device set and tile, with DRAM on top.

    Args:
        layers: the layer table of `lumoe photonics winograd`.
    """
    use_style()
    table = layers[(layers["layer"] == "all") & (layers["scope"] == "system")]
    parts = [
        name for name in table.columns if name.startswith("power_") and name not in ("power_w", NEEDED_LASER["power_w"])
    ]
    parts = sorted(parts, key=lambda name: -table[name].sum())
    colours = list(islice(cycle([*OKABE_ITO, "0.6"]), len(parts)))
    sets = list(table["device_set"].unique())
    figure, axes = plt.subplots(1, len(sets), figsize=(PAGE_WIDTH_IN, 2.9), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        rows = table[table["device_set"] == name].sort_values("tile")
        base = np.zeros(len(rows))
        for part, colour in zip(parts, colours, strict=True):
            label = part.removeprefix("power_").removesuffix("_w")
            axis.bar(rows["tile"].map(str), rows[part], bottom=base, color=colour, label=label, width=0.7)
            base += rows[part].to_numpy()
        axis.set(title=name, xlabel="tile m (1: no Winograd)")
    axes[0, 0].set_ylabel("power while running (W)")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    basis_note(figure, "modelled; batch and network as configured, DRAM included", 0.035)
    save(figure, output, table[["device_set", "tile", "scope", "layer", "gop_per_s", "power_w", *parts]])
