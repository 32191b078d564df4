"""AlexNet's convolutions on an Eyeriss-like array in SCALE-Sim, beside Eyeriss' own measured latency.

SCALE-Sim needs numpy below 2.4, so it lives in an environment of its own:

    python -m venv build/scalesim
    build/scalesim/bin/pip install scalesim==3.0.0 'numpy<2.4'
    python benchmarks/scalesim_cross_check.py --python build/scalesim/bin/python --output scalesim-alexnet.csv

SCALE-Sim walks through every cycle: all layers and dataflows take longer than six minutes. `--layer` and `--dataflow`
choose some of them.

The array is Eyeriss' (Chen et al., JSSC 2017): 12 x 14 processing elements at 200 MHz. SCALE-Sim knows output-, weight-
and input-stationary dataflows, not Eyeriss' row-stationary one, and no padding, so inputs are given padded. Groups run
one after another. Memory is ideal: cycles are those of the array, to be held against the *processing* latency.
"""

from __future__ import annotations

import csv
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from lumoe.errors import UserError
from lumoe.files import write_csv
from lumoe.photonics.network.layers import Layer
from lumoe.photonics.network.load import load_network
from lumoe.photonics.studies.baselines import eyeriss_layers

ROWS, COLUMNS, CLOCK_HZ = 12, 14, 200e6
DATAFLOWS = {"os": "output stationary", "ws": "weight stationary", "is": "input stationary"}
RUN = """
import sys
from scalesim.scale_sim import scalesim
config, topology, layout, folder = sys.argv[1:]
scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout).run_scale(folder)
"""
CONFIG = """
[general]
run_name = {dataflow}
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
ifmapsramszkB = 50
filtersramszkB = 8
ofmapsramszkB = 50
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
Bandwidth = 16
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
FilterCustomLayout = False
IfmapSRAMBankBandwidth = 16
IfmapSRAMBankNum = 16
IfmapSRAMBankPort = 2
FilterSRAMBankBandwidth = 16
FilterSRAMBankNum = 16
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 8
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def topology_row(layer: Layer) -> list[object]:
    """Return SCALE-Sim's description of one group of a convolution; its input is as large as the windows reach."""
    reach = [(out - 1) * s + k for out, s, k in zip(layer.out_side, layer.stride, layer.kernel, strict=True)]
    channels, kernels = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [layer.name, *reach, *layer.kernel, channels, kernels, layer.stride[0], ""]


def simulate(python: Path, layers: Sequence[Layer], dataflow: str) -> pd.DataFrame:
    """Return SCALE-Sim's compute report, one row per layer: cycles and utilisation of one group."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, topology, layout = (folder / part for part in ("scale.cfg", "alexnet.csv", "layout.csv"))
        config.write_text(CONFIG.format(dataflow=dataflow, rows=ROWS, columns=COLUMNS), encoding="utf-8")
        header: list[object] = [
            "Layer",
            "IFMAP H",
            "IFMAP W",
            "Filter H",
            "Filter W",
            "Channels",
            "Filters",
            "Strides",
            "",
        ]
        factors: list[list[object]] = [["Layer", *["factor"] * 20, ""]]
        factors += [[layer.name, *[1] * 20, ""] for layer in layers]
        for path, rows in ((topology, [header, *map(topology_row, layers)]), (layout, factors)):
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        command = [str(python), "-c", RUN, str(config), str(topology), str(layout), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reports = list(folder.rglob("COMPUTE_REPORT.csv"))
        if done.returncode or not reports:
            raise UserError(f"SCALE-Sim failed: {(done.stderr.strip().splitlines() or ['no report'])[-1]}")
        report = pd.read_csv(reports[0], skipinitialspace=True).rename(columns=str.strip)
    return report.dropna(axis=1, how="all")


def main(
    output: Annotated[Path, typer.Option(help="the table to write")],
    python: Annotated[Path, typer.Option(help="interpreter of the environment with SCALE-Sim")],
    layer: Annotated[list[str] | None, typer.Option(help="may be repeated  [default: all]")] = None,
    dataflow: Annotated[list[str] | None, typer.Option(help="os, ws or is; may be repeated  [default: all]")] = None,
) -> None:
    """Write one row per layer and dataflow: multiply-accumulates and time of SCALE-Sim, of the trace, of Eyeriss."""
    network = load_network("alexnet")
    layers = [found for found in network.convolutions() if not layer or found.name in layer]
    measured = eyeriss_layers(network)["processing_s"]
    blocks = []
    for name in dataflow or DATAFLOWS:
        if name not in DATAFLOWS or not layers:
            raise UserError(f"no such dataflow or layer; dataflows are {', '.join(DATAFLOWS)}, layers conv1 to conv5")
        report = simulate(python, layers, name)
        groups = [found.groups for found in layers]
        cycles = report["Total Cycles"].to_numpy() * groups
        macs = cycles * report["Overall Util %"].to_numpy() / 100 * ROWS * COLUMNS
        blocks.append(
            pd.DataFrame(
                {
                    "layer": [found.name for found in layers],
                    "dataflow": DATAFLOWS[name],
                    "macs_traced": [found.macs for found in layers],
                    "macs_scalesim": macs.round().astype(int),
                    "cycles": cycles.astype(int),
                    "utilisation": report["Overall Util %"].to_numpy() / 100,
                    "scalesim_s": cycles / CLOCK_HZ,
                    "eyeriss_processing_s": measured.loc[[found.name for found in layers]].to_numpy(),
                    "source": f"SCALE-Sim 3.0.0, {ROWS} x {COLUMNS} array at 200 MHz, ideal memory",
                }
            )
        )
    table = pd.concat(blocks, ignore_index=True)
    table["scalesim_over_eyeriss"] = table["scalesim_s"] / table["eyeriss_processing_s"]
    write_csv(output, table)


if __name__ == "__main__":
    typer.run(main)
