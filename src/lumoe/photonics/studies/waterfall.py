"""From the paper's speed-up of PCNNA to the honest one, bound by bound, and what could win it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.accelerators.resources import busiest
from lumoe.photonics.devices import Values
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import ConvolutionShapes, convolution_shapes
from lumoe.photonics.studies.baselines import eyeriss_layers

COLUMNS = ("step", "kind", "time_s", "speedup_network", "speedup_max", "speedup_alone", "limit")
LABELS = {
    "adcs": "output converters",
    "sram": "SRAM bandwidth",
    "dram": "DRAM bandwidth",
    "weight_dacs": "weight converters",
    "settling": "thermal settling",
}


@dataclass(frozen=True)
class Remedies:
    """What an architect could change, applied one after another to the fully bounded design.

    Attributes:
        batch: images that share one programming of the weights.
        sram_width: bits of one SRAM access.
        weight_dacs: number of weight converters.
        settling_s: settling time of faster tuning, seconds.
        grouped: the same network with grouped convolutions, if it has such a form.
    """

    batch: float
    sram_width: float
    weight_dacs: float
    settling_s: float
    grouped: Network | None = None


@dataclass(frozen=True)
class _State:
    """One step: a design on a network's shapes; `alone` is the paper's design with this step's bound only."""

    step: str
    kind: str
    shapes: ConvolutionShapes
    values: Values
    design: pcnna.Design
    alone: pcnna.Design | None = None


def waterfall(network: Network, values: Mapping[str, float], *, channels: int, remedies: Remedies) -> pd.DataFrame:
    """Return one row per step: time per image, speed-up over Eyeriss (processing latency), and what bounds it.

    Args:
        values: device parameters in SI units.
        channels: wavelengths that one waveguide really carries.

    Returns:
        Columns `COLUMNS`; `speedup_alone` is that of the paper's design with this one bound added. Speed-ups are
        missing for a network on which Eyeriss was not measured.
    """
    pcnna.NEEDS.check(values)
    baseline = eyeriss_layers(network)["processing_s"].to_numpy()
    rows = []
    for state in _states(network, values, channels, remedies):
        times = pcnna.resource_times(state.shapes, state.values, state.design)
        if state.kind == "optical core":
            layers, limits = times["optical_core"], np.full_like(times["optical_core"], "optical_core", dtype="<U16")
        else:
            layers, limits = pcnna.total_time(times, state.design)
        seconds = layers[:, 0]
        alone = np.nan
        if state.alone is not None:
            single, _ = pcnna.total_time(pcnna.resource_times(state.shapes, state.values, state.alone), state.alone)
            alone = baseline.sum() / single.sum()
        rows.append(
            {
                "step": state.step,
                "kind": state.kind,
                "time_s": seconds.sum(),
                "speedup_network": baseline.sum() / seconds.sum(),
                "speedup_max": np.max(baseline / seconds),
                "speedup_alone": alone,
                "limit": busiest(seconds, limits[:, 0]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _states(network: Network, values: Mapping[str, float], channels: int, remedies: Remedies) -> Iterator[_State]:
    shapes = convolution_shapes(network.convolutions())
    paper = pcnna.Design()
    yield _State("optical core alone", "optical core", shapes, values, paper)
    yield _State("input converters: the paper's full system", "paper", shapes, values, paper)
    for count, bound in enumerate(LABELS, start=1):
        design = paper.with_bounds(*list(LABELS)[:count])
        yield _State(f"+ {LABELS[bound]}", "bound", shapes, values, design, paper.with_bounds(bound))
    split = replace(design, channels=float(channels), in_time=1.0)
    alone = replace(paper, channels=float(channels), in_time=1.0)
    yield _State(f"+ {channels} wavelengths, groups in time", "bound", shapes, values, split, alone)
    side_by_side = replace(split, in_time=0.0)
    yield _State("groups on banks side by side", "remedy", shapes, values, side_by_side)
    batched = replace(side_by_side, batch=remedies.batch)
    yield _State(f"+ batch of {remedies.batch:g}", "remedy", shapes, values, batched)
    wider = {**values, "sram_width": remedies.sram_width}
    yield _State(f"+ {remedies.sram_width:g}-bit SRAM accesses", "remedy", shapes, wider, batched)
    faster = {**wider, "weight_dacs": remedies.weight_dacs}
    yield _State(f"+ {remedies.weight_dacs:g} weight converters", "remedy", shapes, faster, batched)
    tuned = {**faster, "thermo_optic_settling": remedies.settling_s}
    yield _State("+ electro-optic tuning", "remedy", shapes, tuned, batched)
    if remedies.grouped is not None:
        grouped = convolution_shapes(remedies.grouped.convolutions())
        yield _State("+ grouped convolution", "remedy", grouped, tuned, batched)
