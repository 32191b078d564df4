"""The overview of claims: what each paper says, what came out here, on what basis, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from lumoe.plots.style import OKABE_ITO, PAGE_WIDTH_IN, save, use_style

BLUE, VERMILION, GREEN, ORANGE = (OKABE_ITO[index] for index in (0, 1, 2, 4))
VERDICTS = {
    "reproduced": ("●", GREEN),
    "reproduced-under-assumptions": ("◐", BLUE),
    "partly": ("◒", ORANGE),
    "not-reproduced": ("✕", VERMILION),
    "not-run": ("○", "0.45"),
}
# Left edge of each column as a fraction of the axes' width.
COLUMNS = {"claim": 0.0, "quantity": 0.19, "paper": 0.605, "here": 0.665, "basis": 0.79, "verdict": 0.86}
ROW_IN, HEAD_IN = 0.29, 0.55


def draw_claims(table: pd.DataFrame, output: str | Path) -> None:
    """Draw one line per quantity of `table` (the columns of `results/claims.csv`) and save it at `output`."""
    use_style()
    height = HEAD_IN + ROW_IN * len(table)
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN, height), layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.05 / height, bottom=0.05 / height)
    axes.set(xlim=(0, 1), ylim=(len(table) + 0.2, -HEAD_IN / ROW_IN))
    axes.axis("off")
    for name, left in COLUMNS.items():
        axes.text(left, -0.75, name, fontsize=7, fontweight="bold", va="center")
    axes.axhline(-0.4, color="0.2", linewidth=0.8)
    previous = ""
    for position, row in enumerate(table.to_dict("records")):
        first = row["claim"] != previous
        if first and position:
            axes.axhline(position - 0.5, color="0.85", linewidth=0.6)
        _draw_row(axes, position, row, first)
        previous = row["claim"]
    save(figure, output, table)


def _draw_row(axes: Axes, position: int, row: dict[Hashable, Any], first: bool) -> None:
    tone = "black" if first else "0.35"
    unit = "" if pd.isna(row["unit"]) else f" [{row['unit']}]"
    mark, colour = VERDICTS[row["verdict"]]
    cells = {
        "claim": row["claim"] if first else "",
        "quantity": textwrap.fill(f"{row['quantity']}{unit}", 66),
        "paper": _number(row["paper_value"]),
        "here": _span(row),
        "basis": "" if pd.isna(row["basis"]) else row["basis"],
    }
    text: dict[str, Any] = {"fontsize": 5.6, "va": "center", "linespacing": 1.05}
    for name, content in cells.items():
        weight = "bold" if name == "claim" else "normal"
        axes.text(COLUMNS[name], position, content, color=tone, fontweight=weight, **text)
    axes.text(COLUMNS["verdict"], position, mark, fontsize=8, va="center", color=colour)
    label = row["verdict"].replace("-under-", "\nunder ")
    axes.text(COLUMNS["verdict"] + 0.02, position, label, color=colour, **text)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"


def _span(row: dict[Hashable, Any]) -> str:
    text = _number(row["value"])
    low, high = ("" if pd.isna(row[name]) else f"{row[name]:.2g}" for name in ("low", "high"))
    return f"{text}\n({low} … {high})" if low and high else text
