"""How every figure looks, and how it is saved: SVG, PNG and its table, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lumoe.files import atomic_path, write_csv
from lumoe.resources import package_path

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLUMN_WIDTH_IN = 3.5
PAGE_WIDTH_IN = 7.2


def use_style() -> None:
    """Set the one style: colour-blind-safe colours, readable at column width, no time or random id in the file."""
    sns.set_theme(context="paper", style="ticks", palette=list(OKABE_ITO))
    plt.style.use(package_path("plots", "lumoe.mplstyle"))


def basis_note(figure: Figure, text: str) -> None:
    """Write below the axes what the numbers rest on: measured, simulated, modelled or fitted."""
    figure.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=6, color="0.35")


def save(figure: Figure, path: str | Path, table: pd.DataFrame) -> None:
    """Write `path` with the suffixes .svg, .png and .csv (the plotted table), each whole or not at all."""
    stem = Path(path).with_suffix("")
    # A null date and a fixed hash salt (in the style) keep the bytes the same from run to run.
    clean = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    for suffix, metadata in clean.items():
        with atomic_path(stem.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata)
    write_csv(stem.with_suffix(".csv"), table)
    plt.close(figure)
