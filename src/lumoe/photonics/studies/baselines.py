"""What electronic accelerators reach: published totals of platforms, and Eyeriss layer by layer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lumoe.files import read_csv
from lumoe.photonics.network.layers import Network
from lumoe.resources import data_path

PLATFORM_COLUMNS = (
    "platform",
    "technology",
    "network",
    "gop_per_s",
    "power_w",
    "gop_per_s_per_w",
    "source",
    "confidence",
)
LAYER_COLUMNS = ("network", "batch", "layer", "total_ms", "processing_ms", "power_mw", "source", "confidence")
# Which published rows speak of which traced network.
EYERISS_NETWORKS = {"alexnet": "AlexNet", "alexnet-ungrouped": "AlexNet", "vgg16": "VGG16"}


def platforms(path: str | Path | None = None) -> pd.DataFrame:
    """Return the electronic baselines, one row per platform and network.

    `name` is the platform with its network: what a row is called in tables and figures. The efficiency is derived
    where only throughput and power were published.
    """
    table = read_csv(path or data_path("baselines.csv"), PLATFORM_COLUMNS)
    table["name"] = table["platform"] + ", " + table["network"]
    derived = table["gop_per_s"] / table["power_w"]
    table["gop_per_s_per_w"] = table["gop_per_s_per_w"].fillna(derived)
    return table


def eyeriss_layers(network: Network, path: str | Path | None = None) -> pd.DataFrame:
    """Return Eyeriss' time and energy per image for each convolution of a network, indexed by layer.

    Columns: processing_s (the processing latency), total_s (with data movement), power_w, energy_j; missing for layers
    that it was not run on.
    """
    table = read_csv(path or data_path("eyeriss_layers.csv"), LAYER_COLUMNS)
    rows = table[table["network"] == EYERISS_NETWORKS.get(network.name, "")].set_index("layer")
    per_image = 1e-3 / rows["batch"]
    power = rows["power_mw"] * 1e-3
    measured = pd.DataFrame(
        {
            "processing_s": rows["processing_ms"] * per_image,
            "total_s": rows["total_ms"] * per_image,
            "power_w": power,
            "energy_j": rows["total_ms"] * per_image * power,
        },
        dtype=float,
    )
    return measured.reindex([layer.name for layer in network.layers if layer.kind == "conv"])
