"""Figures of what the engine did on this machine: measured speed, hit rates of residency policies."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from lumoe.plots.style import COLUMN_WIDTH_IN, MARKERS, OKABE_ITO, basis_note, save, shades, use_style

MB = 1e6
THROUGHPUT_COLUMNS = (
    "quantized_experts", "budget_bytes", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max",
    "predicted_tokens_per_s",
)  # fmt: skip
RESIDENCY_COLUMNS = ("trace", "policy", "scope", "guesses", "resident_share", "hit_rate")
# Best first; where policies coincide, a dashed line does not hide the one below it.
POLICY_LINES = {
    "belady": ("optimum (Belady)", "-"),
    "lfru": ("lfru", "-"),
    "lru": ("lru", "--"),
    "oracle": ("best fixed choice", "-"),
    "frequency": ("frequency", "--"),
    "random": ("random (the paper's)", "-"),
}


def draw_throughput(table: pd.DataFrame, output: str | Path) -> None:
    """Measured speed against fast-tier memory with its range, and the prediction as a line, by quantised count."""
    use_style()
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.3, 2.9))
    counts = sorted(table["quantized_experts"].unique())
    for count, colour, marker in zip(counts, shades(len(counts)), MARKERS, strict=False):
        part = table[table["quantized_experts"] == count].sort_values("budget_bytes")
        memory, speed = part["budget_bytes"] / MB, part["tokens_per_s"]
        span = [speed - part["tokens_per_s_min"], part["tokens_per_s_max"] - speed]
        axes.errorbar(memory, speed, span, fmt=marker, ms=4, capsize=2, lw=0.8, color=colour, label=f"{count}")
        axes.plot(memory, part["predicted_tokens_per_s"], color=colour, lw=1, ls="--")
    axes.set(xlabel="fast-tier memory (MB)", ylabel="throughput (new tokens/s)", ylim=(0, None))
    axes.legend(title="quantised experts", loc="upper left", frameon=False)
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, "points: measured, median and range; dashed: predicted from micro-benchmarks")
    save(figure, output, table)


def draw_residency(table: pd.DataFrame, output: str | Path) -> None:
    """Hit rate of each residency policy against the share of experts that is resident, nothing read ahead.

    Of recorded routing all corpora one after another, where there are several; beside it the synthetic traces.
    """
    use_style()
    table = table[(table["guesses"] == "none") & (table["scope"] == "layer")]
    names = list(table["trace"].unique())
    made = [name for name in names if name.startswith("drift-")]
    recorded = [name for name in names if name not in made]
    shown = [recorded[-1], *made]
    figure, grid = plt.subplots(len(shown), figsize=(COLUMN_WIDTH_IN, 0.6 + 2.1 * len(shown)), squeeze=False)
    for axes, name in zip(grid[:, 0], shown, strict=True):
        part = table[table["trace"] == name]
        _draw_policies(axes, part)
        text = "text, " + ("its corpora in turn" if name == "joined" else name) if name in recorded else _made(name)
        axes.set_title(text, fontsize=8)
    grid[-1, 0].set_xlabel("share of experts resident")
    lines, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=7)
    figure.set_layout_engine("constrained", rect=(0, 0.025, 1, 0.975))
    basis_note(figure, "simulated: policies replayed on routing; random: mean and range of seeds")
    save(figure, output, table[table["trace"].isin(shown)])


def _draw_policies(axes: Axes, table: pd.DataFrame) -> None:
    for (policy, (label, style)), colour, marker in zip(POLICY_LINES.items(), OKABE_ITO, MARKERS, strict=False):
        rates = table[table["policy"] == policy].groupby("resident_share")["hit_rate"].agg(["mean", "min", "max"])
        span = [rates["mean"] - rates["min"], rates["max"] - rates["mean"]]
        axes.errorbar(
            rates.index, rates["mean"], span if policy == "random" else None, color=colour, marker=marker, ms=3.5,
            lw=1.1, ls=style, mfc="none", capsize=2, label=label,
        )  # fmt: skip
    axes.set(ylabel="hit rate", xlim=(0, table["resident_share"].max()), ylim=(0, 1))


def _made(name: str) -> str:
    experts, _, chosen = name.removeprefix("drift-").partition("x")
    return f"synthetic, drifting: {chosen} of {experts} experts"
