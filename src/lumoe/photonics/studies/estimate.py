"""The table of one design point of an accelerator, layer by layer with a total."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators.registry import Estimate
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers

COLUMNS = (
    "layer", "macs", "weights", "time_s", "limit", "gop_per_s", "energy_j", "power_w", "area_mm2", "bits", "baseline_s",
    "speedup",
)  # fmt: skip
ALL_LAYERS = "all"


def estimate_table(network: Network, found: Estimate) -> pd.DataFrame:
    """Return one row per convolution and one, `all`, for the network: time, energy, power, area, bits, speed-up.

    After `COLUMNS` come the time of each resource and the energy and area of each component; the latter add up to
    `energy_j` and `area_mm2`. The area of `all` is that of the largest need of each component, its bits the fewest.

    Args:
        found: of one design point, for the network's convolutions.
    """
    shapes = convolution_shapes(network.convolutions())
    baseline = eyeriss_layers(network.name).reindex(shapes.names)["processing_s"].to_numpy(dtype=float)
    sums = {
        "layer": shapes.names,
        "macs": shapes.macs[:, 0],
        "weights": shapes.weights[:, 0],
        "time_s": found.time_s[:, 0],
        "baseline_s": baseline,
    }
    parts = {f"time_{name}_s": part[:, 0] for name, part in found.times_s.items()}
    parts |= {f"energy_{name}_j": part[:, 0] for name, part in found.energy_j.items()}
    table = pd.DataFrame(sums | parts)
    areas = pd.DataFrame({f"area_{name}_mm2": part[:, 0] * 1e6 for name, part in found.area_m2.items()})
    # A total that lacks one layer's baseline must be missing.
    total = table.drop(columns="layer").sum(min_count=len(table))
    whole = pd.DataFrame([{"layer": ALL_LAYERS, **total, **areas.max()}])
    table = pd.concat([pd.concat([table, areas], axis=1), whole], ignore_index=True)
    table["limit"] = [*found.limit[:, 0], _busiest(found)]
    table["bits"] = [*found.bits[:, 0], found.least_bits[0]]
    table["detector_bits"] = [*found.detector_bits[:, 0], found.detector_bits.min()]
    table["energy_j"] = table.filter(regex=r"^energy_.+_j$").sum(axis=1)
    table["area_mm2"] = table.filter(regex=r"^area_.+_mm2$").sum(axis=1)
    table["gop_per_s"] = 2e-9 * table["macs"] / table["time_s"]
    table["power_w"] = table["energy_j"] / table["time_s"]
    table["speedup"] = table["baseline_s"] / table["time_s"]
    return table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]]


def _busiest(found: Estimate) -> str:
    """The resource that limits most of the network's time."""
    names = np.unique(found.limit[:, 0])
    return str(max(names, key=lambda name: found.time_s[found.limit[:, 0] == name, 0].sum()))
