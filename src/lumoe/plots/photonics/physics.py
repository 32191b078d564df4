"""Figures of the photonic physics: ring, detector, weight bank, and a network's accuracy on the core."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from lumoe.plots.style import COLUMN_WIDTH_IN, MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, heatmap, save, use_style

SPECTRUM_COLUMNS = ("detuning_linewidths", "through", "drop", "weight")
DETECTOR_COLUMNS = ("rate_hz", "received_power_dbm", "effective_bits", "ceiling_bits")
WEIGHT_COLUMNS = ("spacing_linewidths", "method", "rms_error", "lorentzian_sum")
ACCURACY_COLUMNS = ("tile", "channels", "weight_bits", "noise", "accuracy", "accuracy_float", "samples")


def draw_ring_spectrum(table: pd.DataFrame, output: str | Path) -> None:
    """Through, drop and weight of an add-drop ring over its detuning."""
    use_style()
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.6))
    for column, label, style in (
        ("through", "through", "-"),
        ("drop", "drop", "--"),
        ("weight", "weight, drop − through", ":"),
    ):
        axis.plot(table["detuning_linewidths"], table[column], style, label=label)
    axis.set(xlabel="detuning (linewidths)", ylabel="power transmission, weight", ylim=(-1.05, 1.05))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, columnspacing=1.2)
    basis_note(figure, "modelled", 0.04)
    save(figure, output, table)


def draw_detector_bits(table: pd.DataFrame, output: str | Path) -> None:
    """Effective bits of a photodiode over received power, per data rate, with the ceiling of intensity noise."""
    use_style()
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.8))
    for (rate, rows), colour, marker in zip(table.groupby("rate_hz"), OKABE_ITO, MARKERS, strict=False):
        axis.plot(
            rows["received_power_dbm"],
            rows["effective_bits"],
            color=colour,
            marker=marker,
            markevery=10,
            label=f"{rate / 1e9:g} GS/s",  # type: ignore[operator]
        )
        axis.axhline(rows["ceiling_bits"].iloc[0], color=colour, linestyle=":", linewidth=0.9)
    axis.set(xlabel="received power per wavelength (dBm)", ylabel="effective bits", ylim=(0, None))
    axis.legend(title="dotted: ceiling of laser noise", loc="lower right", frameon=True, framealpha=0.9)
    basis_note(figure, "modelled", 0.04)
    save(figure, output, table)


def draw_weight_errors(table: pd.DataFrame, output: str | Path) -> None:
    """Weight error over channel spacing: rings set as if alone, calibrated, and the Lorentzian estimate."""
    use_style()
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.8))
    names = {"isolated": "each ring set alone", "drifted": "calibrated, then drifted", "calibrated": "calibrated"}
    for (method, label), colour, marker in zip(names.items(), OKABE_ITO, MARKERS, strict=False):
        rows = table[table["method"] == method]
        axis.plot(rows["spacing_linewidths"], rows["rms_error"], color=colour, marker=marker, label=label)
    rows = table[table["method"] == "isolated"]
    axis.plot(rows["spacing_linewidths"], rows["lorentzian_sum"], "--", color="0.4", label="sum of Lorentzian tails")
    axis.set(
        xscale="log", yscale="log", xlabel="channel spacing (linewidths)", ylabel="rms weight error (of full scale)"
    )
    ticks = [3, 5, 10, 20]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.legend(loc="center right", frameon=True, framealpha=0.9)
    basis_note(figure, "simulated; 1e-8 is where calibration stops", 0.04)
    save(figure, output, table)


def draw_accuracy(table: pd.DataFrame, output: str | Path) -> None:
    """Accuracy over weight bits and noise: a row of maps per tile, a column per number of channels."""
    use_style()
    tiles, channels = sorted(table["tile"].unique()), sorted(table["channels"].unique())
    figure, axes = plt.subplots(
        len(tiles),
        len(channels),
        figsize=(PAGE_WIDTH_IN, 0.6 + 1.55 * len(tiles)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for tile, line in zip(tiles, axes, strict=True):
        for count, axis in zip(channels, line, strict=True):
            rows = table[(table["tile"] == tile) & (table["channels"] == count)]
            shown = 100 * rows.pivot_table(index="weight_bits", columns="noise", values="accuracy").sort_index(
                ascending=False
            )
            heatmap(axis, shown, 1, (0, 100), "cividis", 7)
            name = "PCNNA, direct" if tile == 1 else f"Winograd, m = {tile}"
            axis.set_title(f"{name}, {count} channels", fontsize=8)
    axes[-1][len(channels) // 2].set_xlabel("detector noise (multiple of the device set's)")
    figure.supylabel("weight bits", fontsize=8)
    exact = 100 * table["accuracy_float"].iloc[0]
    images = table["samples"].iloc[0]
    basis_note(figure, f"simulated; test accuracy in %, {images} images; float: {exact:.1f} %", 0.04)
    save(figure, output, table)
