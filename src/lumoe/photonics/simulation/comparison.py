"""The simulation of a design point beside its closed form: one row a layer, for each size of the cache."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lumoe.errors import UserError
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.devices import UNITS
from lumoe.photonics.network.layers import ALL_LAYERS, Network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.simulation.events import Job, layer_times
from lumoe.photonics.simulation.jobs import jobs_of

COLUMNS = (
    "design", "sram_kb", "layer", "closed_form_s", "simulated_s", "difference", "stall_s", "preparation_s", "busiest",
    "busiest_share", "refetches",
)  # fmt: skip


def comparison(network: Network, point: DesignPoint, *, depth: int, caches_kb: Sequence[float] = ()) -> pd.DataFrame:
    """Return one row per cache and layer, and one, `all`, per cache: closed form, simulation, and who is busiest.

    Columns `COLUMNS`, times per image: `difference` is simulated over closed form minus one; `stall_s` their
    difference; `preparation_s` is the part in which weights are written and settle; `refetches` is true where the cache
    is too small and data comes from DRAM again.

    Args:
        depth: items that each FIFO holds.
        caches_kb: sizes of the SRAM in kilobits, infinite for one without limit; that of the device set unless given.

    Raises:
        UserError: a cache or the depth is not positive, or a choice is out of range.
    """
    layers = network.convolutions()
    closed = point.evaluate(convolution_shapes(layers)).time_s[:, 0].tolist()
    tables = []
    for kilobits in caches_kb or [point.devices.si("sram_capacity") / UNITS["kb"]]:
        if not kilobits > 0:
            raise UserError(f"the cache is {kilobits:g} kb, but must be positive")
        jobs = jobs_of(point, layers, cache_bits=kilobits * UNITS["kb"])
        tables.append(_by_layer(network, jobs, closed, depth).assign(design=point.accelerator.name, sram_kb=kilobits))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _by_layer(network: Network, jobs: Sequence[Job], closed_form_s: Sequence[float], depth: int) -> pd.DataFrame:
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
    return table
