"""The table of one design point of an accelerator, layer by layer with a total."""

from __future__ import annotations

import pandas as pd

from lumoe.photonics.accelerators.registry import Estimate
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers
from lumoe.photonics.studies.totals import with_rates, with_total

COLUMNS = (
    "layer", "macs", "weights", "time_s", "limit", "gop_per_s", "energy_j", "power_w", "area_mm2", "bits", "baseline_s",
    "speedup",
)  # fmt: skip


def estimate_table(network: Network, found: Estimate) -> pd.DataFrame:
    """Return one row per convolution and one, `all`, for the network: time, energy, power, area, bits, speed-up.

    After `COLUMNS` come the time of each resource and the energy and area of each component; the latter add up to
    `energy_j` and `area_mm2`. The area of `all` is that of the largest need of each component, its bits the fewest.

    Args:
        found: of one design point, for the network's convolutions.
    """
    shapes = convolution_shapes(network.convolutions())
    parts = {f"time_{name}_s": part for name, part in found.times_s.items()}
    parts |= {f"energy_{name}_j": part for name, part in found.energy_j.items()}
    parts |= {f"area_{name}_mm2": part * 1e6 for name, part in found.area_m2.items()}
    table = pd.DataFrame(
        {
            "layer": shapes.names,
            "limit": found.limit[:, 0],
            "macs": shapes.macs[:, 0],
            "weights": shapes.weights[:, 0],
            "time_s": found.time_s[:, 0],
            "baseline_s": eyeriss_layers(network)["processing_s"].to_numpy(),
            **{name: part[:, 0] for name, part in parts.items()},
            "bits": found.bits[:, 0],
            "detector_bits": found.detector_bits[:, 0],
        }
    )
    table = with_rates(with_total(table, least=("bits", "detector_bits")))
    return table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]]
