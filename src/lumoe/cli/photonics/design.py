"""`lumoe photonics estimate`, `simulate`, `explore`: any network on either accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lumoe.cli.options import CsvOption, InputOption, JsonOption, NetworkOption, OutputOption, SeedOption
from lumoe.cli.tables import for_programs, show

app = typer.Typer(no_args_is_help=True)

DesignOption = Annotated[str, typer.Option(help="pcnna or winograd")]
OwnDevicesOption = Annotated[
    str | None, typer.Option("--devices", help="a device set or .yaml file  [default: the design's own]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of a design choice or device parameter (its file's unit); may be repeated"),
]
ScopeOption = Annotated[
    Literal["whole", "convolutions"],
    typer.Option(help="all layers that multiply, or the convolutions alone, as the accelerators' papers count"),
]


@app.command()
def estimate(
    network: NetworkOption = "alexnet",
    design: DesignOption = "pcnna",
    devices: OwnDevicesOption = None,
    choices: SetOption = None,
    inputs: InputOption = None,
    scope: ScopeOption = "whole",
    output: Annotated[Path | None, typer.Option(help="write every column here")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Print time, energy, power, area and attainable bits of every layer that multiplies, and what limits it.

    Linear layers, attention and transposed convolutions are counted as 1 x 1 convolutions. A note says which share of
    the network's multiply-accumulates and weights the row `all` covers.

    Example: `lumoe photonics estimate --network alexnet --design pcnna --scope convolutions --set dacs=20`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accelerators.design_point import DesignPoint
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.network.shapes import convolution_shapes
    from lumoe.photonics.studies.estimate import COLUMNS, coverage_notes, estimate_table

    point = DesignPoint.named(design, devices, choices or [])
    traced = load_network(network, parse_inputs(inputs))
    layers = traced.scope(scope)
    found = point.evaluate(convolution_shapes(layers))
    table = estimate_table(traced, found, layers)
    if not for_programs(table, as_json, as_csv):
        show(table[list(COLUMNS)], f"{network} on {design}, device set {point.devices.name}; modelled, per image")
    for note in [*coverage_notes(traced, layers, point), *traced.notes(), *point.warnings(found)]:
        typer.echo(f"note: {note}", err=True)
    if output:
        write_csv(output, table, COLUMNS)


@app.command()
def simulate(
    output: OutputOption,
    network: NetworkOption = "alexnet",
    design: DesignOption = "pcnna",
    devices: OwnDevicesOption = None,
    choices: SetOption = None,
    cache: Annotated[list[float] | None, typer.Option(help="SRAM in kb, `inf` is unlimited; may be repeated")] = None,
    depth: Annotated[int, typer.Option(min=1, help="items that each FIFO holds")] = 256,
    inputs: InputOption = None,
) -> None:
    """Check the closed form by discrete-event simulation with finite buffers; show where they stall.

    Example: `lumoe photonics simulate --network alexnet --design pcnna --cache 128 --cache inf --output simulated.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accelerators.design_point import DesignPoint
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.simulation.comparison import COLUMNS, comparison
    from lumoe.photonics.studies.estimate import coverage_notes

    point = DesignPoint.named(design, devices, choices or [])
    traced = load_network(network, parse_inputs(inputs))
    table = comparison(traced, point, depth=depth, caches_kb=cache or [])
    for note in coverage_notes(traced, traced.convolutions(), point):
        typer.echo(f"note: {note}", err=True)
    write_csv(output, table, COLUMNS)


@app.command()
def explore(
    output: Annotated[Path, typer.Option(help="the Pareto table to write")],
    network: NetworkOption = "alexnet",
    design: Annotated[
        list[str] | None, typer.Option(help="pcnna or winograd; may be repeated  [default: both]")
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option(help="device set; may be repeated  [default: the design's]")
    ] = None,
    space: Annotated[Path | None, typer.Option(help="levels to combine  [default: the shipped design space]")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE,VALUE,... instead of that name's levels; may be repeated")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="designs for each accelerator")] = 100_000,
    least_bits: Annotated[float, typer.Option(min=0, help="designs with fewer attainable bits are refused")] = 1.0,
    seed: SeedOption = 0,
    all_points: Annotated[Path | None, typer.Option(help="write every design here")] = None,
    inputs: InputOption = None,
) -> None:
    """Sweep a design space and keep what no other design beats in time, energy, area and attainable bits.

    Example: `lumoe photonics explore --network alexnet --design winograd --points 5000 --output pareto.csv`
    """
    import pandas as pd

    from lumoe.files import write_csv
    from lumoe.photonics.accelerators.design_point import DesignPoint
    from lumoe.photonics.accelerators.registry import ACCELERATORS, accelerator
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies import explore as study

    traced = load_network(network, parse_inputs(inputs))
    typer.echo(f"note: {traced.coverage(traced.convolutions())}", err=True)
    changes = dict(study.parse_levels(text) for text in vary or [])
    tables, fronts = [], []
    for chosen in [accelerator(name) for name in design or list(ACCELERATORS)]:
        levels = {**study.default_space(chosen, space), **changes}
        bases = [DesignPoint(chosen, load_devices(name)) for name in devices or [chosen.devices]]
        tables.append(study.explore(traced, bases, levels, points=points, seed=seed))
        fronts.append(study.pareto(tables[-1], least_bits=least_bits))
        typer.echo(f"{chosen.name}: {len(fronts[-1])} of {len(tables[-1])} designs are not beaten", err=True)
    write_csv(output, pd.concat(fronts, ignore_index=True), study.COLUMNS)
    if all_points:
        write_csv(all_points, pd.concat(tables, ignore_index=True), study.COLUMNS)
