"""Figure of the discrete-event check: where finite buffers cost time that the closed form does not see."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

AGREEMENT_PERCENT = 1.0
COLUMNS = ("design", "sram_kb", "layer", "closed_form_s", "simulated_s", "difference", "refetches")


def draw_stall(comparison: pd.DataFrame, output: str | Path) -> None:
    """Simulated over closed-form time of each layer against the size of the SRAM, in per cent, a panel per design.

    Args:
        comparison: the tables of `lumoe photonics simulate` for several SRAM sizes, one below the other.
    """
    use_style()
    table = comparison[["design", "sram_kb", "layer", "closed_form_s", "simulated_s", "difference", "refetches"]]
    names = sorted(table["design"].unique())
    figure, panels = plt.subplots(1, len(names), figsize=(PAGE_WIDTH_IN, 2.8), squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        _panel(axes, table[table["design"] == name])
        axes.set_title(name)
    panels[0][0].set_ylabel("simulated over closed form (%)")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="layer")
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, "simulated; grey: within 1 %; hollow: the SRAM is too small, data comes from DRAM again")
    save(figure, output, table)


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    sizes = sorted(table["sram_kb"].unique())
    axes.axhspan(-AGREEMENT_PERCENT, AGREEMENT_PERCENT, color="0.92", linewidth=0)
    for number, layer in enumerate(dict.fromkeys(table["layer"])):
        rows = table[table["layer"] == layer].set_index("sram_kb").loc[sizes]
        percent, again = 100 * rows["difference"].to_numpy(), rows["refetches"].to_numpy(dtype=bool)
        colour, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
        axes.plot(range(len(sizes)), percent, color=colour, linewidth=1.0)
        for hollow in (True, False):
            where = np.flatnonzero(again == hollow)
            axes.plot(
                where, percent[where], linestyle="none", marker=marker, color=colour,
                markerfacecolor="white" if hollow else colour, label=None if hollow else layer,
            )  # fmt: skip
    axes.set_xticks(range(len(sizes)), ["unlimited" if np.isinf(size) else f"{size:g}" for size in sizes])
    axes.set_xlabel("SRAM (kb)")
    axes.grid(visible=False, axis="x")
