"""Figure of the discrete-event check: where finite buffers cost time that the closed form does not see."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

AGREEMENT_PERCENT = 1.0


def draw_stall(comparison: pd.DataFrame, output: str | Path) -> None:
    """Simulated over closed-form time of each layer against the size of the SRAM, in per cent.

    Args:
        comparison: the table of `lumoe photonics simulate` for several SRAM sizes.
    """
    use_style()
    sizes = sorted(comparison["sram_kb"].unique())
    table = comparison[["sram_kb", "layer", "closed_form_s", "simulated_s", "difference", "refetches"]]
    layers = list(dict.fromkeys(table["layer"]))
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.7, 2.9))
    axes.axhspan(-AGREEMENT_PERCENT, AGREEMENT_PERCENT, color="0.92", linewidth=0)
    for number, layer in enumerate(layers):
        rows = table[table["layer"] == layer].set_index("sram_kb").loc[sizes]
        percent, alone = 100 * rows["difference"].to_numpy(), rows["refetches"].to_numpy(dtype=bool)
        colour, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
        axes.plot(range(len(sizes)), percent, color=colour, linewidth=1.0)
        for hollow in (True, False):
            where = np.flatnonzero(alone == hollow)
            axes.plot(
                where, percent[where], linestyle="none", marker=marker, color=colour,
                markerfacecolor="white" if hollow else colour, label=None if hollow else layer,
            )  # fmt: skip
    names = ["unlimited" if np.isinf(size) else f"{size:g}" for size in sizes]
    axes.set_xticks(range(len(sizes)), names)
    axes.set(xlabel="SRAM (kb)", ylabel="simulated over closed form (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="layer")
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, "simulated; grey: within 1 %; hollow: a window does not fit, every location goes to DRAM")
    save(figure, output, table)
