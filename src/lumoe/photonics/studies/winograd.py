"""Tables of the Winograd accelerator: layer by layer, and summed up beside every electronic baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators import winograd
from lumoe.photonics.accelerators.tiling import check_tiles
from lumoe.photonics.devices import Values
from lumoe.photonics.network.layers import ALL_LAYERS, Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers
from lumoe.photonics.studies.totals import with_rates, with_total

SCOPES = {"chip": 0.0, "system": 1.0}
COLUMNS = (
    "device_set",
    "tile",
    "scope",
    "layer",
    "gop_per_s",
    "power_w",
    "gop_per_s_per_w",
    "time_s",
    "energy_j",
    "limit",
)
SUMMARY_COLUMNS = (
    "device_set", "tile", "scope", "gop_per_s", "power_w", "gop_per_s_per_w", "area_mm2", "time_s", "baseline",
    "baseline_technology", "baseline_network", "confidence", "ratio_gop_per_s", "ratio_power", "ratio_gop_per_s_per_w",
)  # fmt: skip
NOISE_LOSS = "noise_loss_bits"
# The efficiency with as much laser power as the converters' bits need; see `winograd_link.with_links`.
LASER_LIMITED = "gop_per_s_per_w_with_needed_laser"


def layer_table(network: Network, sets: Mapping[str, Values], tiles: Sequence[int], *, batch: int = 1) -> pd.DataFrame:
    """Return one row per device set, tile, scope and convolution, and one, `all`, for the whole network.

    Operations are two per multiply-accumulate of the direct convolution, whatever the tile. The power of a layer is
    its energy over its time, and the sum of the `power_*_w` columns.
    """
    shapes = convolution_shapes(network.convolutions())
    check_tiles(shapes, list(tiles))
    baseline = eyeriss_layers(network)
    blocks = []
    for name, tile, scope in product(sets, tiles, SCOPES):
        design = winograd.Design(tile=float(tile), batch=float(batch), memory=SCOPES[scope])
        winograd.NEEDS.check(sets[name])
        time, limit = winograd.total_time(winograd.resource_times(shapes, sets[name], design))
        joules = winograd.energy(shapes, sets[name], design, time)
        square_metres = winograd.area(shapes, sets[name], design)
        block = pd.DataFrame(
            {"layer": shapes.names, "time_s": time[:, 0], "limit": limit[:, 0], "macs": shapes.macs[:, 0]}
        )
        block[NOISE_LOSS] = winograd.noise_loss_bits(shapes, design)[:, 0]
        block["baseline_s"] = baseline["total_s"].to_numpy()
        block["baseline_energy_j"] = baseline["energy_j"].to_numpy()
        for part, value in joules.items():
            block[f"energy_{part}_j"] = value[:, 0]
        for part, value in square_metres.items():
            block[f"area_{part}_mm2"] = value[:, 0] * 1e6
        block = _with_powers(with_rates(with_total(block, greatest=[NOISE_LOSS])))
        block.insert(0, "scope", scope)
        block.insert(0, "tile", tile)
        block.insert(0, "device_set", name)
        blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def _with_powers(block: pd.DataFrame) -> pd.DataFrame:
    """The table with the efficiency, the gain in energy and the power of each component."""
    block["gop_per_s_per_w"] = block["gop_per_s"] / block["power_w"]
    block["energy_gain"] = block["baseline_energy_j"] / block["energy_j"]
    for column in map(str, block.filter(regex="^energy_.+_j$").columns):
        block[column.replace("energy_", "power_").replace("_j", "_w")] = block[column] / block["time_s"]
    return block


def summary_table(layers: pd.DataFrame, platforms: pd.DataFrame) -> pd.DataFrame:
    """Return one row per design and electronic baseline, with how many times the design's figure is the baseline's.

    `ratio_power` above one means that the photonic design takes more. A figure that the baseline lacks gives no ratio.
    """
    whole = layers[layers["layer"] == ALL_LAYERS].drop(columns=["layer"])
    known = platforms.rename(
        columns={
            "name": "baseline", "technology": "baseline_technology", "network": "baseline_network",
            "gop_per_s": "baseline_gop_per_s", "power_w": "baseline_power_w",
            "gop_per_s_per_w": "baseline_gop_per_s_per_w",
        }
    )  # fmt: skip
    columns = ["baseline", "baseline_technology", "baseline_network", "baseline_gop_per_s", "baseline_power_w",
               "baseline_gop_per_s_per_w", "confidence"]  # fmt: skip
    table = whole.merge(known[columns], how="cross")
    for ratio, figure in {"gop_per_s": "gop_per_s", "power": "power_w", "gop_per_s_per_w": "gop_per_s_per_w"}.items():
        table[f"ratio_{ratio}"] = table[figure] / table[f"baseline_{figure}"].replace(0, np.nan)
    if LASER_LIMITED in table:
        table[f"ratio_{LASER_LIMITED}"] = table[LASER_LIMITED] / table["baseline_gop_per_s_per_w"]
    return table
