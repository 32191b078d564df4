"""What `benchmarks/true_scale` measured on a GPU: read, summarised, held against the cost model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lumoe.errors import UserError
from lumoe.files import read_csv

PAPER = "paper"
MODEL = "mixtral-8x7b"
COLUMNS = (
    "scheme",
    "routing",
    "batch",
    "point",
    "quantized_experts",
    "resident_experts",
    "budget_bytes",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "predicted_tokens_per_s",
    "floor_tokens_per_s",
    "bytes_fast",
    "model",
    "device",
    "commit",
    "basis",
)
SUMMARY = (
    "scheme",
    "routing",
    "batch",
    "rows",
    "lowest_tokens_per_s",
    "highest_tokens_per_s",
    "ratio",
    "half_over_paper",
    "all_4bit_tokens_per_s",
    "all_4bit_over_floor",
    "median_error",
    "worst_error",
    "device",
    "basis",
)


def read_measurements(path: Path) -> pd.DataFrame:
    """Read the table of the sweep.

    Raises:
        UserError: the file is absent, lacks a column, holds a speed that is none, or rows of another model or of
            several devices.
    """
    table = read_csv(path, COLUMNS)
    if table.empty or not (table["tokens_per_s"] > 0).all():
        raise UserError(
            f"{path}: every row needs a speed above 0; measure again with `python -m benchmarks.true_scale`"
        )
    for name, wanted in (("model", MODEL), ("basis", "measured")):
        if set(table[name]) != {wanted}:
            found = ", ".join(sorted(set(map(str, table[name]))))
            raise UserError(f"{path}: '{name}' must be '{wanted}' in every row, not {found}")
    if table["device"].nunique() != 1:
        raise UserError(f"{path}: rows of {table['device'].nunique()} devices; keep one device to a file")
    return table


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each scheme, routing and batch, with the columns of SUMMARY.

    `ratio` is the fastest over the slowest configuration; `half_over_paper` the median, over counts of quantised
    experts, of the speed at half residency over the paper's scheme there; `all_4bit_over_floor` the speed with every
    expert resident at 4 bits over the speed that memory bandwidth alone would allow; errors are |predicted / measured −
    1|, and missing where nothing was predicted.
    """
    rows = []
    for (scheme, routing, batch), part in table.groupby(["scheme", "routing", "batch"], sort=False):
        speeds = part["tokens_per_s"]
        error = (part["predicted_tokens_per_s"] / speeds - 1).abs()
        small = part[(part["point"] == "all") & (part["quantized_experts"] == table["quantized_experts"].max())]
        rows.append(
            {
                "scheme": scheme,
                "routing": routing,
                "batch": batch,
                "rows": len(part),
                "lowest_tokens_per_s": speeds.min(),
                "highest_tokens_per_s": speeds.max(),
                "ratio": speeds.max() / speeds.min(),
                "half_over_paper": _half_over_paper(table, part, routing, batch),
                "all_4bit_tokens_per_s": small["tokens_per_s"].max() if len(small) else np.nan,
                "all_4bit_over_floor": (small["tokens_per_s"] / small["floor_tokens_per_s"]).max(),
                "median_error": error.median(),
                "worst_error": error.max(),
                "device": part["device"].iloc[0],
                "basis": "measured",
            }
        )
    return pd.DataFrame(rows, columns=list(SUMMARY))


def describe(summary: pd.DataFrame) -> str:
    """Return the summary in words, a line for each scheme, routing and batch."""
    lines = [f"{summary['device'].iloc[0]}, random weights of Mixtral 8x7B's shape"]
    for row in summary.to_dict("records"):
        line = (
            f"  {row['scheme']}, {row['routing']}, batch {row['batch']}: {row['lowest_tokens_per_s']:.2f} to "
            f"{row['highest_tokens_per_s']:.2f} tokens/s, ratio {row['ratio']:.1f}"
        )
        for name, text in (
            ("half_over_paper", "{:.2f} x the paper's scheme at half residency"),
            ("all_4bit_tokens_per_s", "{:.1f} with all experts at 4 bits"),
            ("median_error", "prediction off by {:.0%} in the median"),
        ):
            line += "" if np.isnan(row[name]) else f", {text.format(row[name])}"
        lines.append(line)
    return "\n".join(lines)


def _half_over_paper(table: pd.DataFrame, part: pd.DataFrame, routing: object, batch: object) -> float:
    paper = table[(table["scheme"] == PAPER) & (table["routing"] == routing) & (table["batch"] == batch)]
    here, there = (
        rows[rows["point"] == "half"].set_index("quantized_experts")["tokens_per_s"] for rows in (part, paper)
    )
    return float((here / there).median())
