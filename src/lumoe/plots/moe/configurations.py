"""Figures of Mixture-of-Experts serving: speed against memory, quality against precision, frontier, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lumoe.plots.style import (
    COLUMN_WIDTH_IN,
    MARKERS,
    OKABE_ITO,
    PAGE_WIDTH_IN,
    basis_note,
    plain_decades,
    save,
    shades,
    use_style,
)

GB = 1e9
PAPER_PLACEMENT = "quantized-first"
PUBLISHED = "published"
SPEED_LABEL = "throughput (new tokens/s)"
# What each figure reads of its table.
CONFIGURATION_COLUMNS = (
    "hardware", "placement", "quantized_experts", "resident_experts", "bytes_fast", "predicted_tokens_per_s",
)  # fmt: skip
ANCHOR_COLUMNS = ("published_tokens_per_s", "predicted_tokens_per_s", "basis")
PARETO_COLUMNS = (
    "hardware", "budget_bytes", "quantized_experts", "resident_experts", "predicted_tokens_per_s", "perplexity",
)  # fmt: skip
PERPLEXITY_COLUMNS = (
    "corpus", "policy", "seed", "equivalent_experts", "expert_bytes", "increase", "increase_low", "increase_high",
)  # fmt: skip
PREDICTION_COLUMNS = (
    "quantized_experts", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "predicted_tokens_per_s", "device",
)  # fmt: skip


def draw_throughput_memory(
    configurations: pd.DataFrame, anchors: pd.DataFrame | None, output: str | Path, shares: Sequence[float] = ()
) -> None:
    """Speed against fast-tier memory, one line per share of quantised experts, with published speeds as crosses.

    Args:
        configurations, anchors: the tables of `lumoe moe enumerate` and `lumoe moe anchors`; or the figure's own table,
            in which the published speeds are rows of their own, and None.
        shares: of quantised experts, 0 to 1; all that the table has by default.
    """
    use_style()
    if anchors is None:
        published = configurations["placement"] == PUBLISHED
        anchors = configurations[published].assign(budget_bytes=lambda part: part["bytes_fast"])
        configurations = configurations[~published]
    total = int(configurations["quantized_experts"].max())
    counts = [round(share * total) for share in shares] or sorted(configurations["quantized_experts"].unique())
    rows = configurations[configurations["placement"] == PAPER_PLACEMENT]
    table = rows[rows["quantized_experts"].isin(counts)].assign(fast_gb=lambda part: part["bytes_fast"] / GB)
    # With everything resident there is no swap buffer: what takes more memory than that is left out.
    table = table[table["fast_gb"] <= table.groupby("quantized_experts")["fast_gb"].transform("last")]
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.62, 2.9))
    for count, colour in zip(counts, shades(len(counts)), strict=True):
        part = table[table["quantized_experts"] == count]
        axes.plot(part["fast_gb"], part["predicted_tokens_per_s"], color=colour, label=f"{count:g}")
    axes.scatter(
        anchors["budget_bytes"] / GB,
        anchors["published_tokens_per_s"],
        marker="x",
        s=42,
        linewidths=1.6,
        color=OKABE_ITO[1],
        zorder=5,
        label="published",
    )
    for row in anchors.to_dict("records"):
        note = f"{row['published_tokens_per_s']:.2f} ({'fitted' if row['basis'] == 'fitted' else 'predicted'} "
        below = row["basis"] != "fitted"
        axes.annotate(
            note + f"{row['predicted_tokens_per_s']:.2f})",
            (row["budget_bytes"] / GB, row["published_tokens_per_s"]),
            xytext=(5, -9 if below else 6),
            textcoords="offset points",
            fontsize=6.5,
            color=OKABE_ITO[1],
        )
    _log_speed(axes)
    axes.set(xlabel="fast-tier memory (GB)", ylabel=SPEED_LABEL)
    axes.legend(title=f"4-bit experts of {total}", loc="center left", bbox_to_anchor=(1.01, 0.5))
    basis_note(figure, f"modelled: {table['hardware'].iloc[0]}; one constant fitted to 13.00 tokens/s", 0.05)
    points = anchors.assign(placement=PUBLISHED, bytes_fast=anchors["budget_bytes"])
    columns = ["hardware", "placement", "quantized_experts", "resident_experts", "bytes_fast", "predicted_tokens_per_s"]
    columns += ["published_tokens_per_s", "basis"]
    drawn = pd.concat([table, points], ignore_index=True)[columns]
    save(figure, output, drawn.astype({"quantized_experts": "Int64", "resident_experts": "Int64"}))


def draw_pareto(pareto: pd.DataFrame, output: str | Path) -> None:
    """The frontier of speed against quality, one line per budget; quality is the perplexity where the table has it."""
    use_style()
    measured = pareto["perplexity"].notna().all()
    quality = "perplexity" if measured else "quantized_experts"
    table = pareto.assign(budget_gb=pareto["budget_bytes"] / GB).sort_values(["budget_gb", quality], kind="stable")
    budgets = sorted(table["budget_gb"].unique())
    unit, scale = ("GB", 1) if max(budgets) >= 1 else ("MB", 1000)
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.62, 2.9))
    for budget, colour in zip(budgets, shades(len(budgets)), strict=True):
        part = table[table["budget_gb"] == budget]
        label = f"{budget * scale:.2f}"
        axes.plot(part["predicted_tokens_per_s"], part[quality], color=colour, marker=".", markersize=2.5, label=label)
    _log_speed(axes, vertical=False)
    axes.set(
        xlabel=f"predicted {SPEED_LABEL}",
        ylabel="perplexity (less is better)" if measured else "4-bit experts (fewer is better)",
    )
    axes.legend(title=f"budget ({unit})", loc="center left", bbox_to_anchor=(1.01, 0.5))
    basis = "perplexity measured, interpolated between measured counts" if measured else "quality axis is a count"
    basis_note(figure, f"speed modelled: {table['hardware'].iloc[0]}; {basis}", 0.05)
    columns = ["hardware", "budget_bytes", "quantized_experts", "resident_experts", "bytes_fast"]
    columns += ["predicted_tokens_per_s", "perplexity", "perplexity_basis"]
    save(figure, output, table[columns])


def draw_perplexity(perplexity: pd.DataFrame, output: str | Path) -> None:
    """Relative perplexity increase against quantised experts (or the same bytes), one panel per corpus, with intervals.

    A point is one choice of experts (seed) with its paired bootstrap interval; the line joins the means over seeds.
    """
    use_style()
    corpora = list(dict.fromkeys(perplexity["corpus"]))
    policies = list(dict.fromkeys(perplexity["policy"]))
    figure, panels = plt.subplots(1, len(corpora), figsize=(PAGE_WIDTH_IN, 2.8), sharey=True, squeeze=False)
    span = perplexity["equivalent_experts"].max()
    for axes, corpus in zip(panels[0], corpora, strict=True):
        for number, policy in enumerate(policies):
            part = perplexity[(perplexity["corpus"] == corpus) & (perplexity["policy"] == policy)]
            mean = part.groupby("equivalent_experts")["increase"].mean()
            axes.plot(mean.index, mean, color=OKABE_ITO[number], label=policy)
            seeds = sorted(part["seed"].unique())
            for seed in seeds:
                rows = part[part["seed"] == seed]
                # Side by side, so that the intervals of several seeds stay apart.
                shift = (
                    (seeds.index(seed) - (len(seeds) - 1) / 2 + (number - (len(policies) - 1) / 2) * 1.6) * span / 60
                )
                errors = np.abs(rows[["increase_low", "increase_high"]].to_numpy().T - rows["increase"].to_numpy())
                axes.errorbar(
                    rows["equivalent_experts"] + shift, rows["increase"], yerr=errors, fmt=MARKERS[number],
                    markersize=3, linewidth=0.9, color=OKABE_ITO[number], alpha=0.75,
                )  # fmt: skip
        axes.axhline(0, color="0.4", linewidth=0.7)
        axes.set(title=corpus, xlabel="4-bit experts (or the same bytes)", ylabel="perplexity increase")
        axes.label_outer()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _bytes_above(axes, perplexity)
    panels[0][0].legend(title="which experts", loc="upper left")
    basis_note(figure, "measured; 95 % paired bootstrap over windows, one point per choice of experts", 0.05)
    columns = ["corpus", "policy", "seed", "equivalent_experts", "expert_bytes"]
    columns += ["increase", "increase_low", "increase_high"]
    save(figure, output, perplexity[columns])


def draw_prediction(throughput: pd.DataFrame, output: str | Path) -> None:
    """Measured against predicted speed with the range over repeats, and the band of 15 % around equality."""
    use_style()
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 3.0))
    table = throughput.assign(error=throughput["predicted_tokens_per_s"] / throughput["tokens_per_s"] - 1)
    low = table[["tokens_per_s_min", "predicted_tokens_per_s"]].min().min() * 0.8
    high = table[["tokens_per_s_max", "predicted_tokens_per_s"]].max().max() * 1.25
    line = np.array([low, high])
    axes.plot(line, line, color="0.4", linewidth=0.8)
    axes.fill_between(line, line * 0.85, line * 1.15, color="0.9", label="±15 %")
    for number, (count, part) in enumerate(table.groupby("quantized_experts")):
        errors = np.abs(part[["tokens_per_s_min", "tokens_per_s_max"]].to_numpy().T - part["tokens_per_s"].to_numpy())
        axes.errorbar(
            part["predicted_tokens_per_s"], part["tokens_per_s"], yerr=errors, fmt=MARKERS[number % len(MARKERS)],
            markersize=4, linewidth=0.9, color=OKABE_ITO[number % len(OKABE_ITO)], label=f"{count} 4-bit experts",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=line, ylim=line)
    axes.set(xlabel="predicted new tokens/s", ylabel="measured new tokens/s")
    plain_decades(axes.xaxis)
    plain_decades(axes.yaxis)
    axes.tick_params(axis="both", which="minor", labelsize=6)
    axes.legend(loc="upper left")
    error = table["error"].abs()
    axes.set_title(f"median error {error.median():.0%}, worst {error.max():.0%}")
    basis_note(figure, f"measured: {table['device'].iloc[0]}", 0.05)
    columns = ["quantized_experts", "resident_experts", "budget_bytes", "tokens_per_s", "tokens_per_s_min",
               "tokens_per_s_max", "predicted_tokens_per_s", "error", "device"]  # fmt: skip
    save(figure, output, table[columns])


def _bytes_above(axes: Axes, perplexity: pd.DataFrame) -> None:
    """Put what the experts weigh above the axis of how many are quantised: a straight line maps one to the other."""
    ends = perplexity[perplexity["policy"] == perplexity["policy"].iloc[0]].groupby("equivalent_experts")[
        "expert_bytes"
    ]
    weights = ends.first() / 1e6
    if len(weights) > 1 and weights.iloc[0] != weights.iloc[-1]:
        slope = (weights.iloc[-1] - weights.iloc[0]) / (weights.index[-1] - weights.index[0])
        origin = weights.iloc[0] - slope * weights.index[0]
        above = axes.secondary_xaxis(
            "top", functions=(lambda count: origin + slope * count, lambda weight: (weight - origin) / slope)
        )
        above.set_xlabel("expert weights (MB)")


def _log_speed(axes: Axes, vertical: bool = True) -> None:
    axis = axes.yaxis if vertical else axes.xaxis
    if vertical:
        axes.set_yscale("log")
    else:
        axes.set_xscale("log")
    plain_decades(axis)
    axes.tick_params(axis="y" if vertical else "x", which="minor", labelsize=7)
