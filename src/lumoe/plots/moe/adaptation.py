"""Figure of budget traces: what the budget allowed, what was held, how fast it ran, what each change took."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lumoe.plots.style import MARKERS, OKABE_ITO, PAGE_WIDTH_IN, basis_note, save, use_style

MB = 1e6
LABELS = {"adaptive": "live reconfiguration", "static": "static, smallest budget", "restart": "restart at each change"}
COLUMNS = [
    "trace",
    "strategy",
    "time_s",
    "budget_bytes",
    "quantized_experts",
    "bytes_fast",
    "tokens_per_s",
    "reconfiguration_s",
    "freed_s",
    "failed_requests",
]


def draw_adaptation(record: pd.DataFrame, output: str | Path) -> None:
    """Draw one column per trace on one time axis: memory, speed, quantised experts, time of the changes."""
    use_style()
    traces = list(dict.fromkeys(record["trace"]))
    figure, panels = plt.subplots(
        4, len(traces), figsize=(PAGE_WIDTH_IN, 5.6), sharex="col", sharey="row", squeeze=False
    )
    for column, trace in zip(panels.T, traces, strict=True):
        part = record[record["trace"] == trace]
        column[0].set_title(trace)
        _memory(column[0], part[part["strategy"] == "adaptive"])
        _speed(column[1], part)
        _quantized(column[2], part)
        _changes(column[3], part)
        column[3].set_xlabel("time (s)")
        # A restart that lags behind its trace ends later; the axis ends where the trace does.
        column[3].set_xlim(0, part.loc[part["strategy"] == "adaptive", "time_s"].max())
    _label(figure, panels[:, 0].tolist())
    for row in panels[:3]:
        row[0].set_ylim(bottom=0)
    for row in panels:
        if row[0].get_legend_handles_labels()[0]:
            row[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.set_layout_engine("constrained", rect=(0, 0.03, 1, 0.97))
    basis_note(figure, "measured, batch 1")
    save(figure, output, record[COLUMNS])


def _memory(axes: Axes, part: pd.DataFrame) -> None:
    axes.step(
        part["time_s"], part["budget_bytes"] / MB, where="post", color=OKABE_ITO[6], linewidth=1.0, label="budget"
    )
    axes.fill_between(
        part["time_s"],
        part["bytes_fast"] / MB,
        step="post",
        color=OKABE_ITO[5],
        alpha=0.5,
        linewidth=0,
        label="in fast tier",
    )


def _speed(axes: Axes, part: pd.DataFrame) -> None:
    for number, (strategy, label) in enumerate(LABELS.items()):
        rows = part[part["strategy"] == strategy]
        axes.plot(rows["time_s"], rows["tokens_per_s"], color=OKABE_ITO[number], linewidth=0.9, label=label)
        if (broken := rows[rows["failed_requests"] > 0]).size:
            axes.plot(
                broken["time_s"], broken["tokens_per_s"], "x", markersize=4, color=OKABE_ITO[number],
                label="request broken off",
            )  # fmt: skip


def _quantized(axes: Axes, part: pd.DataFrame) -> None:
    for number, strategy in enumerate(LABELS):
        if strategy != "restart":  # its plans are those of live reconfiguration
            rows = part[part["strategy"] == strategy]
            axes.step(rows["time_s"], rows["quantized_experts"], where="post", color=OKABE_ITO[number], linewidth=0.9)


def _changes(axes: Axes, part: pd.DataFrame) -> None:
    series = (
        ("adaptive", "freed_s", "live, until freed", 2, OKABE_ITO[0]),
        ("adaptive", "reconfiguration_s", "live, until loaded", 3, OKABE_ITO[0]),
        ("restart", "reconfiguration_s", "restart, until loaded", 0, OKABE_ITO[2]),
    )
    for strategy, name, label, marker, color in series:
        rows = part[(part["strategy"] == strategy) & part["reconfiguration_s"].notna()]
        axes.plot(
            rows["time_s"], rows[name] * 1e3, MARKERS[marker], markersize=3, color=color, fillstyle="none", label=label
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label(figure: Figure, first: list[Axes]) -> None:
    for axes, text in zip(first, ("MB", "new tokens/s", "4-bit experts", "change (ms)"), strict=True):
        axes.set_ylabel(text)
    figure.align_ylabels(first)
