"""The simulated pipeline beside the closed form, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lumoe.photonics.network.layers import Network
from lumoe.photonics.simulation.events import Job, layer_times

COLUMNS = (
    "layer", "closed_form_s", "simulated_s", "difference", "stall_s", "preparation_s", "busiest", "busiest_share",
    "refetches",
)  # fmt: skip
ALL_LAYERS = "all"


def comparison(network: Network, jobs: Sequence[Job], closed_form_s: Sequence[float], *, depth: int) -> pd.DataFrame:
    """Return one row per layer and one, `all`, for the network: closed form, simulation, and who is busiest.

    Columns: `difference` is simulated over closed form minus one; `stall_s` their difference; `preparation_s` is the
    part in which weights are written and settle; `refetches` is true where the cache is too small and data comes from
    DRAM again.
    """
    outcomes = layer_times(jobs, depth=depth)
    refetches = {job.layer: job.refetches for job in jobs}
    waits = {layer.name: 0.0 for layer in network.convolutions()}
    for job in jobs:
        waits[job.layer] += job.preparation_s * job.repeats / job.images
    rows = []
    for layer, closed in zip(network.convolutions(), closed_form_s, strict=True):
        outcome = outcomes[layer.name]
        busiest = max(outcome.busy_s, key=lambda name: outcome.busy_s[name])
        rows.append(
            {
                "layer": layer.name,
                "closed_form_s": closed,
                "simulated_s": outcome.duration_s,
                "preparation_s": waits[layer.name],
                "busiest": busiest,
                "busiest_share": outcome.busy_s[busiest] / outcome.duration_s,
                "refetches": refetches[layer.name],
            }
        )
    table = pd.DataFrame(rows)
    total = table[["closed_form_s", "simulated_s", "preparation_s"]].sum()
    whole = {"layer": ALL_LAYERS, **total, "refetches": table["refetches"].any()}
    table = pd.concat([table, pd.DataFrame([whole])], ignore_index=True)
    table["difference"] = table["simulated_s"] / table["closed_form_s"] - 1
    table["stall_s"] = table["simulated_s"] - table["closed_form_s"]
    return table[list(COLUMNS)]
