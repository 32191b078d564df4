"""Figures of the photonic accelerators: PCNNA's speed-up layer by layer."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

KINDS = {
    "optical_core": "optical core alone",
    "full_system": "full system as in the paper",
    "all_bounds": "full system, every bound",
}
STEP_KINDS = {
    "optical core": "the paper's optical core",
    "paper": "the paper's full system",
    "bound": "bounds that it leaves out",
    "remedy": "remedies",
}
RESOURCES = ("optical_core", "input_dacs", "adcs", "sram", "dram", "weight_dacs", "settling")
PART_COLOURS = (*OKABE_ITO[:6], "#999999", *OKABE_ITO[6:])
LEAST_SHARE = 0.01
NARROW = 3.0
CLAIMS = {1e5: "claim for the\noptical core", 1e3: "claim for the\nfull system"}
LAYER_COLUMNS = ("layer", *(f"speedup_{kind}" for kind in KINDS))
SUMMARY_COLUMNS = ("quantity", "baseline", *KINDS)
WATERFALL_COLUMNS = ("step", "kind", "speedup_network", "speedup_max", "speedup_alone", "limit")
RESOURCE_COLUMNS = ("layer", "all_bounds_s", "all_bounds_limit", *(f"{name}_s" for name in RESOURCES))


def draw_pcnna(layers: pd.DataFrame, summary: pd.DataFrame | None, output: str | Path) -> None:
    """Speed-up over Eyeriss of each layer and of the whole network, on a log axis.

    Args:
        layers, summary: the two tables of `lumoe photonics pcnna`; or the figure's own table, which ends with the whole
            network, and None.
    """
    use_style()
    columns = {kind: f"speedup_{kind}" for kind in KINDS}
    table = layers[["layer", *columns.values()]]
    if summary is not None:
        whole = summary[(summary["quantity"] == "speedup_network") & (summary["baseline"] == "processing")].iloc[0]
        last = pd.DataFrame([{"layer": "all layers", **{column: whole[kind] for kind, column in columns.items()}}])
        table = pd.concat([table, last], ignore_index=True)
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.72, 3.0))
    for number, (kind, label) in enumerate(KINDS.items()):
        axes.plot(
            table.index, table[columns[kind]], linestyle="none", marker=MARKERS[number], markersize=6,
            color=OKABE_ITO[number], label=label,
        )  # fmt: skip
        for position, value in table[columns[kind]].items():
            axes.annotate(
                _order(value),
                (position, value),
                xytext=(5, _label_offset(value)),
                textcoords="offset points",
                fontsize=6,
            )
    _speedup_axis(axes, table)
    axes.axvline(len(table) - 1.5, color="0.8", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3)
    basis_note(
        figure,
        "modelled; baseline: measured processing latency of Eyeriss per image (Chen et al., JSSC 2017)",
        strip=0.05,
    )
    save(figure, output, table)


def draw_waterfall(steps: pd.DataFrame, output: str | Path) -> None:
    """Speed-up of the whole network and of its best layer, step by step, on a log axis.

    Args:
        steps: the table of `lumoe photonics waterfall`.
    """
    use_style()
    table = steps[["step", "kind", "speedup_network", "speedup_max", "speedup_alone", "limit"]]
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN, 0.24 * len(table) + 0.9))
    colours = dict(zip(STEP_KINDS, OKABE_ITO, strict=False))
    axes.barh(table.index, table["speedup_network"], color=[colours[kind] for kind in table["kind"]], height=0.62)
    axes.plot(table["speedup_max"], table.index, "D", color="0.2", markersize=3.5, label="best layer")
    alone = table["speedup_alone"].dropna()
    axes.plot(alone, alone.index, "|", color="0.2", markersize=8, label="this bound alone")
    for row, step in enumerate(table.to_dict("records")):
        value = step["speedup_network"]
        # White in the bar; a bar too short for it has its number on the right.
        where, colour = (1.15, "white") if value > NARROW else (value * 1.15, "black")
        axes.text(where, row, _order(value), va="center", fontsize=6.5, color=colour)
        bound = step["limit"].replace("_", " ")
        axes.text(1.01, row, bound, va="center", fontsize=6.5, transform=axes.get_yaxis_transform())
    axes.text(1.01, -1.0, "bounded by", va="center", fontsize=6.5, weight="bold", transform=axes.get_yaxis_transform())
    for level in CLAIMS:
        axes.axvline(level, color="0.35", linewidth=0.8, linestyle="--")
    axes.set_yticks(table.index, table["step"].tolist())
    axes.invert_yaxis()
    axes.set(xscale="log", xlim=(1, 1e6), xlabel="speed-up over Eyeriss (times); dashed: what the paper claims")
    axes.grid(visible=False, axis="y")
    patches = [Patch(color=colours[kind], label=text) for kind, text in STEP_KINDS.items()]
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*patches, *handles], loc="lower right", fontsize=6.5)
    basis_note(
        figure,
        "modelled; bars: all convolutions; baseline: measured processing latency of Eyeriss per image",
        strip=0.05,
    )
    save(figure, output, table)


def draw_resources(layers: pd.DataFrame, output: str | Path) -> None:
    """What each resource needs for each layer, and which one bounds it; energy and area by component below.

    Args:
        layers: the layer table of `lumoe photonics pcnna`.
    """
    use_style()
    figure, (top, *bottom) = plt.subplots(3, 1, figsize=(PAGE_WIDTH_IN, 6.2), height_ratios=[1.25, 1, 1])
    times = [f"{name}_s" for name in RESOURCES]
    positions = range(len(layers))
    for number, name in enumerate(RESOURCES):
        shift = (number - (len(RESOURCES) - 1) / 2) * 0.11
        label = name.replace("_", " ")
        colour = OKABE_ITO[number]
        top.vlines([x + shift for x in positions], 1e-10, layers[f"{name}_s"], color=colour, linewidth=5, label=label)
    left, right = [x - 0.42 for x in positions], [x + 0.42 for x in positions]
    top.hlines(layers["all_bounds_s"], left, right, color="0.15", linewidth=1.2, label="layer, every bound")
    top.set(yscale="log", ylim=(1e-8, 3e-3), ylabel="time per image (s)")
    tables = [layers[["layer", *times, "all_bounds_s", "all_bounds_limit"]]]
    for axes, kind, unit, word in (
        (bottom[0], "energy", "j", "energy per image (J)"),
        (bottom[1], "area", "mm2", "area (mm²)"),
    ):
        part = layers.filter(regex=f"^{kind}_.+_{unit}$")
        # Components that never reach a hundredth of a layer would only fill the legend.
        shares = part.div(part.sum(axis=1), axis=0).max()
        shown = part[shares[shares >= LEAST_SHARE].index]
        rest = part.drop(columns=shown.columns).sum(axis=1)
        base = pd.Series(0.0, index=part.index)
        parts = {**{column: shown[column] for column in shown}, "others": rest}
        for number, (column, values) in enumerate(parts.items()):
            name = str(column).removeprefix(f"{kind}_").removesuffix(f"_{unit}").replace("_", " ")
            axes.bar(positions, values, bottom=base, width=0.55, color=PART_COLOURS[number], label=name)
            base = base + values
        axes.set_ylabel(word)
        tables.append(part)
    for axes in (top, *bottom):
        axes.set_xticks(positions, layers["layer"].tolist(), rotation=0 if len(layers) < 9 else 45)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for x, limit in zip(positions, layers["all_bounds_limit"], strict=True):
        top.text(x, 1.05, limit.replace("_", " "), ha="center", fontsize=6.5, transform=top.get_xaxis_transform())
    top.text(-0.06, 1.05, "bounded by", ha="right", fontsize=6.5, weight="bold", transform=top.transAxes)
    basis_note(figure, "modelled, batch 1, as many wavelengths as a kernel has inputs", 0.05)
    save(figure, output, pd.concat(tables, axis=1))


def _speedup_axis(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_yscale("log")
    axes.set_ylim(1, 1e6)
    for level, text in CLAIMS.items():
        axes.axhline(level, color="0.35", linewidth=0.8, linestyle="--")
        axes.text(1.01, level, text, fontsize=6.5, color="0.35", va="center", transform=axes.get_yaxis_transform())
    axes.set_xticks(range(len(table)), table["layer"].tolist())
    axes.set(xlim=(-0.5, len(table) - 0.4), ylabel="speed-up over Eyeriss (times)")
    axes.grid(visible=False, axis="x")


def _label_offset(value: float) -> int:
    """Points above the marker's centre; below it where the label would lie on a claim's line."""
    return -8 if any(level / 2.5 < value < level for level in CLAIMS) else 2


def _order(value: float) -> str:
    """A speed-up in two digits: 25, 1.7k, 160k."""
    return f"{float(f'{value:.2g}'):g}" if value < 1000 else f"{float(f'{value:.2g}') / 1000:g}k"
