"""Speed against GPU memory at Mixtral 8x7B's real shape: the paper's scheme and this engine, side by side."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lumoe.plots.style import OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

GB = 1e9
PAPER, OVERLAP, ENGINE = "paper", "overlap", "engine"
PAPER_PLACEMENT = "quantized-first"
PEER_COLUMNS = ("peer", "batch", "budget_bytes", "tokens_per_s")
ANCHOR_COLUMNS = ("budget_bytes", "published_tokens_per_s")
PLAIN = "uniform"


def draw_true_scale(
    measured: pd.DataFrame,
    configurations: pd.DataFrame,
    anchors: pd.DataFrame,
    peers: pd.DataFrame | None,
    output: str | Path,
) -> None:
    """Speed of one sequence against memory, a colour for each count of quantised experts, uniform routing.

    Left the paper's scheme, with the published speeds as crosses and the model of the published hardware as dotted
    lines; right this engine, copies beside computation (dashed) and with misses on the host where that is faster
    (solid), and other software as triangles.

    Args:
        measured: the sweep, see `lumoe.moe.measurement.true_scale`.
        configurations, anchors: the tables of `lumoe moe enumerate` and `lumoe moe anchors`.
    """
    use_style()
    rows = measured[(measured["routing"] == PLAIN) & (measured["batch"] == 1)]
    table = rows.assign(fast_gb=rows["bytes_fast"] / GB).sort_values(["quantized_experts", "fast_gb"], kind="stable")
    counts = sorted(table["quantized_experts"].unique())
    colours = dict(zip(counts, sns.color_palette("viridis", len(counts)), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, 3.0), sharex=True, sharey=True)
    model = configurations[configurations["placement"] == PAPER_PLACEMENT]
    for count, colour in colours.items():
        _line(left, table, PAPER, count, colour, "-", label=f"{count}")
        part = model[model["quantized_experts"] == count].sort_values("resident_experts")
        # With everything resident there is no swap buffer: what takes more memory than that is left out.
        part = part[part["bytes_fast"] <= part["bytes_fast"].iloc[-1]]
        left.plot(part["bytes_fast"] / GB, part["predicted_tokens_per_s"], ":", color=colour, linewidth=0.9)
        _line(right, table, OVERLAP, count, colour, "--")
        _line(right, table, ENGINE, count, colour, "-")
    left.scatter(
        anchors["budget_bytes"] / GB, anchors["published_tokens_per_s"],
        marker="x", s=36, linewidths=1.5, color=OKABE_ITO[1], zorder=5, label="published",
    )  # fmt: skip
    if peers is not None:
        part = peers[peers["batch"] == 1]
        right.scatter(
            part["budget_bytes"] / GB, part["tokens_per_s"],
            marker="^", s=22, color=OKABE_ITO[1], zorder=5, label=", ".join(part["peer"].unique()),
        )  # fmt: skip
        right.legend(loc="lower right")
    for axes, title in ((left, "the paper's scheme"), (right, "this engine")):
        axes.set(title=title, xlabel="GPU memory (GB)", yscale="log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.set_ylabel("throughput (new tokens/s)")
    left.legend(title="4-bit experts", loc="lower right", ncols=2)
    figure.set_layout_engine("constrained", rect=(0, 0.06, 1, 0.94))
    device, hardware = table["device"].iloc[0], model["hardware"].iloc[0]
    basis_note(figure, f"measured: {device}, random weights; dotted: modelled for {hardware}, one constant fitted")
    columns = ["scheme", "quantized_experts", "resident_experts", "fast_gb", "tokens_per_s", "tokens_per_s_min",
               "tokens_per_s_max", "predicted_tokens_per_s"]  # fmt: skip
    save(figure, output, table[columns])


def _line(
    axes: Axes, table: pd.DataFrame, scheme: str, count: int, colour: object, style: str, label: str | None = None
) -> None:
    part = table[(table["scheme"] == scheme) & (table["quantized_experts"] == count)]
    axes.plot(
        part["fast_gb"],
        part["tokens_per_s"],
        style,
        color=colour,
        marker="o",
        markersize=2.5,
        linewidth=1.1,
        label=label,
    )
