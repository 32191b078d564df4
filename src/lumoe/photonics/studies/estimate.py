"""The table of one design point of an accelerator, layer by layer with a total, and what of the network it covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import Estimate
from lumoe.photonics.network.layers import Layer, Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers
from lumoe.photonics.studies.totals import with_rates, with_total

COLUMNS = (
    "layer", "macs", "weights", "time_s", "limit", "utilisation", "gop_per_s", "energy_j", "power_w", "area_mm2",
    "bits", "baseline_s", "speedup",
)  # fmt: skip


def estimate_table(network: Network, found: Estimate, layers: Sequence[Layer] | None = None) -> pd.DataFrame:
    """Return one row per layer and one, `all`, for all of them: time, energy, power, area, bits, speed-up.

    After `COLUMNS` come the time of each resource and the energy and area of each component; the latter add up to
    `energy_j` and `area_mm2`. The area of `all` is that of the largest need of each component, its bits the fewest, its
    utilisation the mean over the time of the optical core. Weights are the network's: a product of activations has
    none.

    Args:
        found: of one design point, for these layers.
        layers: with multiplications; the network's convolutions unless given.
    """
    rows = network.convolutions() if layers is None else layers
    shapes = convolution_shapes(rows)
    parts = {f"time_{name}_s": part for name, part in found.times_s.items()}
    parts |= {f"energy_{name}_j": part for name, part in found.energy_j.items()}
    parts |= {f"area_{name}_mm2": part * 1e6 for name, part in found.area_m2.items()}
    table = pd.DataFrame(
        {
            "layer": shapes.names,
            "limit": found.limit[:, 0],
            "macs": shapes.macs[:, 0],
            "weights": [float(layer.weights) for layer in rows],
            "time_s": found.time_s[:, 0],
            "baseline_s": eyeriss_layers(network)["processing_s"].reindex(shapes.names).to_numpy(),
            **{name: part[:, 0] for name, part in parts.items()},
            "bits": found.bits[:, 0],
            "detector_bits": found.detector_bits[:, 0],
        }
    )
    table = with_rates(with_total(table, least=("bits", "detector_bits")))
    used, core = found.utilisation[:, 0], found.times_s["optical_core"][:, 0]
    table["utilisation"] = [*used, np.average(used, weights=core)]
    return table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]]


def coverage_notes(network: Network, layers: Sequence[Layer], point: DesignPoint) -> list[str]:
    """Return sentences: which share of a network these layers are, and what DRAM would take for the other weights."""
    said = [network.coverage(layers)]
    left = sum(layer.weights for layer in network.layers) - sum(layer.weights for layer in layers)
    counted = point.choices.get("memory", point.choices.get("bound_dram", 1.0))
    if left and counted:
        values = point.devices.values()
        seconds = left * values["data_bits"] / 8 / values["dram_bandwidth"] / point.choices["batch"]
        said.append(f"{network.name}: to load the other {left:,} weights from DRAM takes {seconds * 1e6:.3g} us more")
    return said
