"""How every figure looks, and how it is saved: SVG, PNG and its table, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from lumoe.files import atomic_path, write_csv
from lumoe.resources import package_path

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLUMN_WIDTH_IN = 3.5
PAGE_WIDTH_IN = 7.2


def use_style() -> None:
    """Set the one style: colour-blind-safe colours, readable at column width, no time or random id in the file."""
    plt.style.use(package_path("plots", "lumoe.mplstyle"))
    plt.rcParams["axes.prop_cycle"] = cycler(color=list(OKABE_ITO))


def shades(count: int) -> list[tuple[float, float, float]]:
    """Return `count` colours in order of lightness, for series that are steps of one quantity."""
    # The ends of the map are left out: black-like and too pale for a line on white.
    return [(red, green, blue) for red, green, blue, _ in mpl.colormaps["viridis"](np.linspace(0, 1, count + 2)[1:-1])]


def heatmap(
    axes: Axes, grid: pd.DataFrame, digits: int, limits: tuple[float, float], colours: str, fontsize: float
) -> QuadMesh:
    """Draw a table as coloured cells with their values in them, its first row on top; labels are its index and columns.

    Args:
        grid: the values; NaN leaves a cell empty.
        digits: after the decimal point.
        limits: the values at the ends of the map of `colours`.
    """
    import seaborn  # imports scipy: half a second that only the figures with cells should pay

    seaborn.heatmap(
        grid,
        ax=axes,
        vmin=limits[0],
        vmax=limits[1],
        cmap=colours,
        annot=True,
        fmt=f".{digits}f",
        annot_kws={"fontsize": fontsize},
        linewidths=0.5,
        cbar=False,
    )
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0, rotation=0)
    axes.grid(visible=False)
    mesh = axes.collections[0]
    assert isinstance(mesh, QuadMesh)
    return mesh


def plain_decades(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 of each decade."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if _first_digit(value) in (2, 5) else ""))


def _first_digit(value: float) -> int:
    return round(value / 10 ** np.floor(np.log10(value))) if value > 0 else 0


def basis_note(figure: Figure, text: str, strip: float | None = None) -> None:
    """Write below the axes what the numbers rest on: measured, simulated, modelled or fitted.

    Args:
        strip: share of the figure's height that is left below the axes for it; by default the layout stays as it is.
    """
    if strip is not None:
        figure.set_layout_engine("constrained", rect=(0, strip, 1, 1 - strip))
    figure.text(0.995, 0.005, text, ha="right", va="bottom", fontsize=6, color="0.35")


def settle(figure: Figure) -> None:
    """Lay out once and for all, to nine decimals: the solver's last digits depend on where its variables lie in memory.

    They would be seen: names in an SVG are hashes of the rectangles that they stand for.
    """
    figure.set_dpi(mpl.rcParams["savefig.dpi"])  # the size of text depends on it a little
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(Bbox(axes.get_position(original=True).get_points().round(9)))


def save(figure: Figure, path: str | Path, table: pd.DataFrame) -> None:
    """Write `path` with the suffixes .svg, .png and .csv (the plotted table), each whole or not at all."""
    stem = Path(path).with_suffix("")
    settle(figure)
    # A null date and a fixed hash salt (in the style) keep the bytes the same from run to run.
    clean = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
    for suffix, metadata in clean.items():
        with atomic_path(stem.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, metadata=metadata)
    write_csv(stem.with_suffix(".csv"), table)
    plt.close(figure)
