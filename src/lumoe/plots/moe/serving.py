"""Figures of what the engine did on this machine: measured speed, hit rates of residency policies."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from lumoe.plots.style import COLUMN_WIDTH_IN, MARKERS, OKABE_ITO, basis_note, save, shades, use_style

MB = 1e6
THROUGHPUT_COLUMNS = (
    "quantized_experts", "budget_bytes", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max",
    "predicted_tokens_per_s",
)  # fmt: skip
RESIDENCY_COLUMNS = ("policy", "resident_share", "hit_rate")


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
    """Hit rate of each residency policy against the share of experts that are resident."""
    use_style()
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.3, 2.9))
    for policy, colour, marker in zip(table["policy"].unique(), OKABE_ITO, MARKERS, strict=False):
        part = table[table["policy"] == policy].groupby("resident_share")["hit_rate"].agg(["mean", "min", "max"])
        span = [part["mean"] - part["min"], part["max"] - part["mean"]]
        # Where policies coincide, the last one must not hide those below it.
        style = "--" if policy == "oracle" else "-"
        axes.errorbar(
            part.index, part["mean"], span, color=colour, marker=marker, ms=4, ls=style, mfc="none", capsize=2,
            label=policy,
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":", zorder=0)
    axes.set(xlabel="share of experts resident", ylabel="hit rate, decoding", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", frameon=False)
    figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
    basis_note(figure, "replayed on recorded routing of held-out text; bars: range over seeds and corpora")
    save(figure, output, table)
