"""`lumoe photonics`: time, energy, area and accuracy of microring accelerators."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.tables import CsvOption, JsonOption

app = typer.Typer(no_args_is_help=True)

for part in ("winograd", "uncertainty", "physics", "explore", "crosscheck"):
    app.add_typer(import_module(f"lumoe.cli.photonics_{part}").app)

NetworkOption = Annotated[str, typer.Option(help="a shipped network, your own MODULE:FACTORY, or a traced .json")]
InputOption = Annotated[str, typer.Option("--input", help="CHANNELSxHEIGHTxWIDTH of one image")]
DevicesOption = Annotated[str, typer.Option(help="a device set, or a .yaml file of your own")]
OutputOption = Annotated[Path, typer.Option(help="the table to write")]


@app.command("layers")
def show_layers(
    network: NetworkOption = "alexnet",
    image: InputOption = "3x224x224",
    output: Annotated[Path | None, typer.Option(help="write the table here instead of printing it")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Trace a network: its layers, their weights and multiply-accumulates, and what was left out.

    Example: `lumoe photonics layers --network resnet18 --csv`
    """
    from lumoe.cli.tables import for_programs, show
    from lumoe.files import write_csv
    from lumoe.photonics.network.layers import parse_shape
    from lumoe.photonics.network.load import load_network

    traced = load_network(network, parse_shape(image))
    table = traced.table()
    if output:
        write_csv(output, table)
    elif not for_programs(table, as_json, as_csv):
        columns = ["name", "kind", "in_channels", "out_channels", "out_side", "kernel", "groups", "weights", "macs"]
        show(table[columns], f"{network}: {table['macs'].sum():,} multiply-accumulates")
    for note in traced.notes():
        typer.echo(note, err=True)


@app.command("trace")
def trace_networks(
    network: Annotated[list[str], typer.Option(help="a shipped network, or your own MODULE:FACTORY; may be repeated")],
    output: Annotated[Path, typer.Option(help="folder that gets one NETWORK.json each")],
    image: InputOption = "3x224x224",
) -> None:
    """Trace networks into files that every other command takes as its network, without importing torch again.

    Example: `lumoe photonics trace --network alexnet --network vgg16 --output networks`
    """
    from lumoe.photonics.network.layers import parse_shape, write_network
    from lumoe.photonics.network.load import load_network

    for name in network:
        write_network(output / f"{name}.json", load_network(name, parse_shape(image)))


@app.command("pcnna")
def model_pcnna(
    output: OutputOption,
    summary: Annotated[Path, typer.Option(help="the totals and greatest speed-ups")],
    network: NetworkOption = "alexnet-ungrouped",
    image: InputOption = "3x224x224",
    devices: DevicesOption = "pcnna",
) -> None:
    """Model PCNNA layer by layer: as its paper counts, and with every bound that the paper leaves out.

    Example: `lumoe photonics pcnna --network alexnet --output layers.csv --summary summary.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accelerators.pcnna import Design
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_shape
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies.pcnna import COLUMNS, SUMMARY_COLUMNS, layer_table, summary_table

    traced = load_network(network, parse_shape(image))
    layers = layer_table(traced, load_devices(devices).values(), Design())
    write_csv(output, layers, COLUMNS)
    write_csv(summary, summary_table(layers), SUMMARY_COLUMNS)
    for note in traced.notes():
        typer.echo(note, err=True)


@app.command("waterfall")
def model_waterfall(
    output: OutputOption,
    network: NetworkOption = "alexnet-ungrouped",
    grouped_network: Annotated[str | None, typer.Option(help="the network with grouped convolutions")] = None,
    image: InputOption = "3x224x224",
    devices: DevicesOption = "pcnna",
    batch: Annotated[int, typer.Option(min=1, help="remedy: images that share one programming")] = 64,
    sram_width: Annotated[int, typer.Option(min=1, help="remedy: bits of one SRAM access")] = 8192,
    weight_dacs: Annotated[int, typer.Option(min=1, help="remedy: number of weight converters")] = 100,
) -> None:
    """Go from PCNNA's published speed-up to the honest one, bound by bound, and see what wins it back.

    Example: `lumoe photonics waterfall --network alexnet-ungrouped --grouped-network alexnet --output steps.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_shape
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.physics.parameters import load_physics
    from lumoe.photonics.studies.waterfall import COLUMNS, Remedies, waterfall

    found = load_devices(devices)
    shape = parse_shape(image)
    traced = load_network(network, shape)
    grouped = None if grouped_network in (None, network) else load_network(grouped_network, shape)
    remedies = Remedies(batch, sram_width, weight_dacs, found.si("electro_optic_settling"), grouped)
    write_csv(
        output, waterfall(traced, found.values(), channels=load_physics(found).channels, remedies=remedies), COLUMNS
    )
