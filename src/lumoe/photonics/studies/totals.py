"""Tables of layers with a row for the whole network, and the rates that follow from times, energies and areas."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lumoe.photonics.accelerators.resources import busiest
from lumoe.photonics.network.layers import ALL_LAYERS


def with_total(table: pd.DataFrame, *, greatest: Sequence[str] = (), least: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table of layers with a last row, `all`, for the whole network.

    Numbers add up, and are missing where one layer's is. Of each component's area the layer that needs most of it
    counts, and the limit is that of most of the time.

    Args:
        table: a row per layer with the columns `layer`, `limit`, `time_s`, and numbers.
        greatest, least: columns of which the greatest or the least counts.
    """
    most = [*greatest, *table.filter(regex="^area_")]
    sums = table.drop(columns=["layer", "limit", *most, *least]).sum(min_count=len(table))
    limit = busiest(table["time_s"].to_numpy(), table["limit"].to_numpy())
    whole = {"layer": ALL_LAYERS, "limit": limit, **sums, **table[most].max(), **table[list(least)].min()}
    return pd.concat([table, pd.DataFrame([whole])], ignore_index=True)


def with_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with `energy_j`, `gop_per_s`, `power_w`, `area_mm2` and `speedup` of each row.

    Operations are two per multiply-accumulate; the speed-up is over `baseline_s`.

    Args:
        table: rows with `macs`, `time_s`, `baseline_s`, and `energy_*_j` and `area_*_mm2` of each component.
    """
    energy = table.filter(regex="^energy_.+_j$").sum(axis=1)
    return table.assign(
        energy_j=energy,
        gop_per_s=2e-9 * table["macs"] / table["time_s"],
        power_w=energy / table["time_s"],
        area_mm2=table.filter(regex="^area_.+_mm2$").sum(axis=1),
        speedup=table["baseline_s"] / table["time_s"],
    )
