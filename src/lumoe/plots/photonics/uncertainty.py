"""Tornado figures: how far each assumption moves the quantity that a photonic claim hangs on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lumoe.errors import UserError, nearest
from lumoe.plots.style import OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

SHOWN = 8
COLUMNS = (
    "claim", "quantity", "metric", "threshold", "parameter", "unit", "low", "high", "nominal", "at_low", "at_high",
    "total_order", "fraction_holds", "p05", "p95",
)  # fmt: skip


def draw_tornado(table: pd.DataFrame, claim: str, output: str | Path) -> None:
    """One panel per quantity of a claim: the swing of each assumption over its range, the greatest first.

    Args:
        table: the table of `lumoe photonics uncertainty`.

    Raises:
        UserError: the table does not hold that claim.
    """
    known = list(table["claim"].unique())
    if claim not in known:
        raise UserError(f"the table holds no claim '{claim}'{nearest(claim, known)}")
    use_style()
    panels = [_shown(rows) for _, rows in table[table["claim"] == claim].groupby("metric", sort=False)]
    heights = [len(rows) + 1.6 for rows in panels]
    inches = 0.85 + 0.2 * sum(heights) + 0.45 * len(panels)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(PAGE_WIDTH_IN * 0.8, inches), squeeze=False, height_ratios=heights
    )
    for axis, rows in zip(axes[:, 0], panels, strict=True):
        _tornado(axis, rows)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    strip = 0.15 / inches
    figure.set_layout_engine("constrained", rect=(0, strip, 1, 1 - strip))
    basis_note(figure, "modelled; $S_T$: total Sobol index of the logarithm")
    save(figure, output, pd.concat(panels, ignore_index=True))


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The assumptions that move the quantity at all, by total index, the greatest first and no more than fit."""
    moves = (rows["at_low"] != rows["nominal"]) | (rows["at_high"] != rows["nominal"]) | (rows["total_order"] > 5e-3)
    return rows[moves].nlargest(SHOWN, "total_order", keep="first")


def _tornado(axis: Axes, rows: pd.DataFrame) -> None:
    nominal, threshold = rows["nominal"].iloc[0], rows["threshold"].iloc[0]
    place = np.arange(len(rows))[::-1]
    ends = {"at_low": OKABE_ITO[5], "at_high": OKABE_ITO[1]}
    labels = {"at_low": "at its low end", "at_high": "at its high end"}
    for column, colour in ends.items():
        axis.barh(
            place, rows[column] - nominal, left=nominal, color=colour, height=0.62, label=labels[column], zorder=2
        )
    axis.axvline(nominal, color="0.2", linewidth=1, label="nominal")
    axis.axvline(threshold, color=OKABE_ITO[2], linestyle="--", linewidth=1.2, label="claim", zorder=3)
    reach = [
        *rows["at_low"],
        *rows["at_high"],
        nominal,
        threshold / 1.2,
        threshold * 1.2,
        rows["p05"].iloc[0],
        rows["p95"].iloc[0],
    ]
    # Whole decades, so that the axis always has two labels.
    decades = (10 ** np.floor(np.log10(min(reach))), 10 ** np.ceil(np.log10(max(reach))))
    axis.set(xscale="log", xlabel="ratio", ylim=(-0.6, len(rows) - 0.4), xlim=decades)
    axis.set_yticks(place, [_range_label(row) for row in rows.to_dict("records")])
    for row, height in zip(rows["total_order"], place, strict=True):
        axis.annotate(f"$S_T$ {row:.2f}", (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)
    share = rows["fraction_holds"].iloc[0]
    title = f"{rows['quantity'].iloc[0]}: at least {threshold:g} in {share:.1%} of the space"
    axis.set_title(fill(title, 64), fontsize=7.5, loc="left")


def _range_label(row: Mapping[Hashable, Any]) -> str:
    unit = "" if row["unit"] == "1" else f" {row['unit']}"
    name = str(row["parameter"]).replace("_", " ")
    return f"{name}  {row['low']:g}–{row['high']:g}{unit}"
