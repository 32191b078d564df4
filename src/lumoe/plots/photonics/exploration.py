"""Figure of a design-space sweep: the designs that no other design beats."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

FIGURES = ("time_s", "energy_j", "area_mm2", "bits")
PARETO_COLUMNS = ("design", "device_set", "network", *FIGURES)
BATCH_COLUMNS = ("network", "memory", "tuning", "weight_dacs", "batch", "speedup_network")


def draw_pareto(front: pd.DataFrame, output: str | Path) -> None:
    """Energy and area against time per image of the Pareto designs, coloured by attainable bits.

    Args:
        front: the table of `lumoe photonics explore`.
    """
    use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, 3.0), sharex=True)
    table = front[["design", "device_set", "network", *FIGURES]]
    low, high = table["bits"].min(), table["bits"].max()
    for axes, column, label in ((left, "energy_j", "energy per image (J)"), (right, "area_mm2", "area (mm²)")):
        for number, (_, rows) in enumerate(table.groupby("design", sort=True)):
            points = axes.scatter(
                rows["time_s"], rows[column], c=rows["bits"], cmap="viridis", vmin=low, vmax=high, s=16,
                marker=MARKERS[number], edgecolors="0.3", linewidths=0.3,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="time per image (s)", ylabel=label)
    handles = [
        Line2D([], [], linestyle="none", marker=MARKERS[number], color="0.5", label=str(design))
        for number, design in enumerate(sorted(table["design"].unique()))
    ]
    left.legend(handles=handles, loc="best")
    figure.colorbar(points, ax=(left, right), label="attainable bits", pad=0.01)
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, f"modelled; convolutions of {table['network'].iloc[0]}; no other design of the sweep is better")
    save(figure, output, table)


def draw_batches(table: pd.DataFrame, output: str | Path) -> None:
    """Speed-up of the network against the batch, a panel per network and memory.

    Args:
        table: of `lumoe photonics batches`.
    """
    use_style()
    rows = table[["network", "memory", "tuning", "weight_dacs", "batch", "speedup_network"]]
    names, memories = list(dict.fromkeys(rows["network"])), list(dict.fromkeys(rows["memory"]))
    figure, panels = plt.subplots(
        1, len(names) * len(memories), figsize=(PAGE_WIDTH_IN, 2.7), sharey=True, squeeze=False
    )
    pairs = [(name, memory) for name in names for memory in memories]
    for axes, (name, memory) in zip(panels[0], pairs, strict=True):
        part = rows[(rows["network"] == name) & (rows["memory"] == memory)]
        for colour, count in zip(OKABE_ITO, sorted(part["weight_dacs"].unique()), strict=False):
            for style, tuning in zip(("-", ":"), dict.fromkeys(part["tuning"]), strict=False):
                line = part[(part["weight_dacs"] == count) & (part["tuning"] == tuning)]
                axes.plot(line["batch"], line["speedup_network"], style, color=colour, label=f"{count}, {tuning}")
        axes.axhline(1e3, color="0.35", linewidth=0.8, linestyle="--")
        batches = sorted(part["batch"].unique())
        axes.set(xscale="log", yscale="log", xlabel="batch", title=f"{name}\nmemories: {memory}")
        axes.title.set_fontsize(7)
        axes.set_xticks(batches, [f"{batch}" for batch in batches])
        axes.minorticks_off()
    panels[0][0].set_ylabel("speed-up over Eyeriss (times)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, title="weight converters, tuning")
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, "modelled, every bound; all convolutions; dashed: the paper's claim for the full system")
    save(figure, output, rows)
