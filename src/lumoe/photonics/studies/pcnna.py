"""Tables of PCNNA: layer by layer as its paper counts and with every bound, and summed up."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.devices import Values
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers

COLUMNS = (
    "layer", "rings", "locations", "optical_core_s", "full_system_s", "limit", "baseline_s", "speedup_optical_core",
    "speedup_full_system", "energy_j", "area_mm2",
)  # fmt: skip
SUMMARY_COLUMNS = ("quantity", "baseline", "optical_core", "full_system", "all_bounds")


def layer_table(network: Network, values: Values, design: pcnna.Design) -> pd.DataFrame:
    """Return one row per convolution: rings, times, limit, speed-ups over Eyeriss, energy and area with their parts.

    `full_system_s` is bounded by what the paper counts, `all_bounds_s` by every resource; energy is that of the
    latter, since rings and lasers stay on while the system waits.
    """
    pcnna.NEEDS.check(values)
    shapes = convolution_shapes(network.convolutions())
    paper, honest = design.with_bounds(), design.with_bounds(*pcnna.BOUNDS)
    full, limit = pcnna.total_time(pcnna.resource_times(shapes, values, paper), paper)
    times = pcnna.resource_times(shapes, values, honest)
    bounded, bounded_limit = pcnna.total_time(times, honest)
    joules = pcnna.energy(shapes, values, honest, bounded)
    square_metres = pcnna.area(shapes, values, honest)
    baseline = eyeriss_layers(network)
    table = pd.DataFrame(
        {
            "layer": shapes.names,
            "rings": pcnna.rings(shapes)[:, 0].astype(np.int64),
            "rings_unfiltered": pcnna.rings(shapes, filtered=False)[:, 0],
            "locations": shapes.locations[:, 0].astype(np.int64),
            "new_inputs": pcnna.new_inputs(shapes)[:, 0].astype(np.int64),
            "wavelength_groups": pcnna.wavelength_groups(shapes, design)[:, 0].astype(np.int64),
            "optical_core_s": times["optical_core"][:, 0],
            "full_system_s": full[:, 0],
            "limit": limit[:, 0],
            "all_bounds_s": bounded[:, 0],
            "all_bounds_limit": bounded_limit[:, 0],
            "baseline_s": baseline["processing_s"].to_numpy(),
            "baseline_total_s": baseline["total_s"].to_numpy(),
            "baseline_energy_j": baseline["energy_j"].to_numpy(),
            "energy_j": np.sum(list(joules.values()), axis=0)[:, 0],
            "area_mm2": np.sum(list(square_metres.values()), axis=0)[:, 0] * 1e6,
        }
    )
    for short, column in {
        "optical_core": "optical_core_s",
        "full_system": "full_system_s",
        "all_bounds": "all_bounds_s",
    }.items():
        table[f"speedup_{short}"] = table["baseline_s"] / table[column]
        table[f"speedup_{short}_total_latency"] = table["baseline_total_s"] / table[column]
    parts = {f"{name}_s": time[:, 0] for name, time in times.items() if name != "optical_core"}
    parts |= {f"energy_{name}_j": part[:, 0] for name, part in joules.items()}
    parts |= {f"area_{name}_mm2": part[:, 0] * 1e6 for name, part in square_metres.items()}
    return pd.concat([table, pd.DataFrame(parts)], axis=1)


def summary_table(layers: pd.DataFrame) -> pd.DataFrame:
    """Return the greatest and the whole-network speed-up against both latencies of Eyeriss, as rows."""
    kinds = ("optical_core", "full_system", "all_bounds")
    rows = []
    for baseline, column in {"processing": "baseline_s", "total": "baseline_total_s"}.items():
        # A sum over no rows must be missing, not zero.
        whole = layers[column].sum(min_count=len(layers))
        rows.append({"quantity": "speedup_max", "baseline": baseline} | {
            kind: (layers[column] / layers[f"{kind}_s"]).max() for kind in kinds
        })  # fmt: skip
        rows.append({"quantity": "speedup_network", "baseline": baseline} | {
            kind: whole / layers[f"{kind}_s"].sum() for kind in kinds
        })  # fmt: skip
    rows.append({"quantity": "time_s", "baseline": ""} | {kind: layers[f"{kind}_s"].sum() for kind in kinds})
    rows.append({"quantity": "energy_j", "baseline": "", "all_bounds": layers["energy_j"].sum()})
    areas = layers.filter(regex=r"^area_.+_mm2$").max().sum()
    rows.append({"quantity": "area_mm2", "baseline": "", "all_bounds": areas})
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
