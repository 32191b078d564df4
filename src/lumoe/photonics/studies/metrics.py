"""The quantities that the photonic claims hang on, as functions of arrays of device parameters and designs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from lumoe.errors import UserError
from lumoe.photonics.accelerators import pcnna, winograd
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import Array, convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers, platforms

# (device values, design values) -> one number per design, [P].
Metrics = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]


def pcnna_metrics(network: Network) -> Metrics:
    """Return the function that gives the greatest speed-up of a layer over Eyeriss' processing latency.

    Raises:
        UserError: Eyeriss was not measured on that network.
    """
    shapes = convolution_shapes(network.convolutions())
    baseline = eyeriss_layers(network)["processing_s"].to_numpy()[:, None]
    if np.isnan(baseline).any():
        raise UserError(f"{network.name}: no published latency of Eyeriss for its layers")

    def evaluate(values: Mapping[str, Array], choices: Mapping[str, Array]) -> dict[str, Array]:
        paper = replace(pcnna.Design(), **dict(choices))  # type: ignore[arg-type]
        times = pcnna.resource_times(shapes, values, paper)
        full, _ = pcnna.total_time(times, paper)
        honest = paper.with_bounds(*pcnna.BOUNDS)
        bounded, _ = pcnna.total_time(pcnna.resource_times(shapes, values, honest), honest)
        return {
            "speedup_optical_core": (baseline / times["optical_core"]).max(axis=0),
            "speedup_full_system": (baseline / full).max(axis=0),
            "speedup_all_bounds": (baseline / bounded).max(axis=0),
        }

    return evaluate


def winograd_metrics(network: Network) -> Metrics:
    """Return the function that holds the whole network's GOP/s, W and GOP/s/W against electronic accelerators.

    Compared are the published accelerators that ran the same network.

    Raises:
        UserError: none of them did.
    """
    shapes = convolution_shapes(network.convolutions())
    same = _same_network(network.name, platforms())
    fastest = same.nlargest(1, "gop_per_s").iloc[0]
    lowest, highest = same["gop_per_s_per_w"].min(), same["gop_per_s_per_w"].max()

    def evaluate(values: Mapping[str, Array], choices: Mapping[str, Array]) -> dict[str, Array]:
        design = winograd.Design(**choices)
        time, _ = winograd.total_time(winograd.resource_times(shapes, values, design))
        joules = np.sum(list(winograd.energy(shapes, values, design, time).values()), axis=(0, 1))
        seconds = time.sum(axis=0)
        speed, power = 2e-9 * shapes.macs.sum() / seconds, joules / seconds
        return {
            "speed_over_fastest": speed / fastest["gop_per_s"],
            "power_under_fastest": fastest["power_w"] / power,
            "efficiency_over_lowest": speed / power / lowest,
            "efficiency_over_highest": speed / power / highest,
        }

    return evaluate


def _same_network(name: str, table: pd.DataFrame) -> pd.DataFrame:
    stem = name.replace("-", "").replace("ungrouped", "")
    same = table[table["network"].str.lower().str.split().str[0] == stem]
    if same["gop_per_s_per_w"].isna().all():
        raise UserError(f"{name}: no electronic accelerator with published throughput and power ran it")
    return same


METRICS: Mapping[str, Callable[[Network], Metrics]] = {"pcnna": pcnna_metrics, "winograd": winograd_metrics}
