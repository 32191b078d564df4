"""How far a batch hides the programming of PCNNA's weights, for several converters, tunings and memories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.devices import DeviceSet
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers

COLUMNS = ("network", "memory", "tuning", "weight_dacs", "batch", "time_s", "speedup_network", "speedup_max")
# Memories as the device set has them, or at the far end of the ranges of their assumptions.
MEMORIES = {"assumed": (), "best of range": ("sram_width", "dram_bandwidth")}
TUNINGS = {"thermo-optic": "thermo_optic_settling", "electro-optic": "electro_optic_settling"}


def batch_table(
    networks: Sequence[Network], devices: DeviceSet, *, batches: Sequence[int], weight_dacs: Sequence[int]
) -> pd.DataFrame:
    """Return one row per network, memory, tuning, number of weight converters and batch, every bound counted.

    Columns `COLUMNS`: the time per image of all convolutions, and the speed-up of the network and of its best layer
    over Eyeriss' processing latency.
    """
    pcnna.NEEDS.check(devices.values())
    honest = pcnna.Design(batch=np.asarray(batches, dtype=float)).with_bounds(*pcnna.BOUNDS)
    blocks = []
    for network, memory, tuning, converters in product(networks, MEMORIES, TUNINGS, weight_dacs):
        shapes = convolution_shapes(network.convolutions())
        baseline = eyeriss_layers(network)["processing_s"].to_numpy()[:, None]
        best = {name: bounds[1] for name in MEMORIES[memory] if (bounds := devices[name].range_si)}
        settling = devices.si(TUNINGS[tuning])
        values = {**devices.values(), **best, "weight_dacs": float(converters), "thermo_optic_settling": settling}
        seconds, _ = pcnna.total_time(pcnna.resource_times(shapes, values, honest), honest)
        blocks.append(
            pd.DataFrame(
                {
                    "network": network.name,
                    "memory": memory,
                    "tuning": tuning,
                    "weight_dacs": converters,
                    "batch": batches,
                    "time_s": seconds.sum(axis=0),
                    "speedup_network": baseline.sum() / seconds.sum(axis=0),
                    "speedup_max": (baseline / seconds).max(axis=0),
                }
            )
        )
    return pd.concat(blocks, ignore_index=True)[list(COLUMNS)]
