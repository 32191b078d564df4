"""Figures of the photonic accelerators: PCNNA's speed-up layer by layer."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

KINDS = {
    "optical_core": "optical core alone",
    "full_system": "full system as in the paper",
    "all_bounds": "full system, every bound",
}
CLAIMS = {1e5: "claim for the\noptical core", 1e3: "claim for the\nfull system"}


def draw_pcnna(layers: pd.DataFrame, summary: pd.DataFrame, output: str | Path) -> None:
    """Speed-up over Eyeriss of each layer and of the whole network, on a log axis.

    Args:
        layers, summary: the two tables of `lumoe photonics pcnna`.
    """
    use_style()
    whole = summary[(summary["quantity"] == "speedup_network") & (summary["baseline"] == "processing")].iloc[0]
    columns = {kind: f"speedup_{kind}" for kind in KINDS}
    last = pd.DataFrame([{"layer": "all layers", **{column: whole[kind] for kind, column in columns.items()}}])
    table = pd.concat([layers[["layer", *columns.values()]], last], ignore_index=True)
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.72, 3.0))
    for number, (kind, label) in enumerate(KINDS.items()):
        axes.plot(
            table.index, table[columns[kind]], linestyle="none", marker=MARKERS[number], markersize=6,
            color=OKABE_ITO[number], label=label,
        )  # fmt: skip
        for position, value in table[columns[kind]].items():
            axes.annotate(_order(value), (position, value), xytext=(5, 2), textcoords="offset points", fontsize=6)
    _speedup_axis(axes, table)
    axes.axvline(len(table) - 1.5, color="0.8", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3)
    _note(figure, "modelled; baseline: measured processing latency of Eyeriss per image (Chen et al., JSSC 2017)")
    save(figure, output, table)


def _speedup_axis(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_yscale("log")
    axes.set_ylim(1, 1e6)
    for level, text in CLAIMS.items():
        axes.axhline(level, color="0.35", linewidth=0.8, linestyle="--")
        axes.text(1.01, level, text, fontsize=6.5, color="0.35", va="center", transform=axes.get_yaxis_transform())
    axes.set_xticks(range(len(table)), table["layer"].tolist())
    axes.set(xlim=(-0.5, len(table) - 0.4), ylabel="speed-up over Eyeriss (times)")
    axes.grid(visible=False, axis="x")


def _order(value: float) -> str:
    """A speed-up in two digits: 25, 1.7k, 160k."""
    return f"{float(f'{value:.2g}'):g}" if value < 1000 else f"{float(f'{value:.2g}') / 1000:g}k"


def _note(figure: Figure, text: str) -> None:
    """Leave a strip below the axes for the basis."""
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, text)
