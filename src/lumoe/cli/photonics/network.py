"""`lumoe photonics layers` and `trace`: networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import CsvOption, InputOption, JsonOption, NetworkOption
from lumoe.cli.tables import for_programs, show

app = typer.Typer(no_args_is_help=True)


@app.command("layers")
def show_layers(
    network: NetworkOption = "alexnet",
    inputs: InputOption = None,
    output: Annotated[Path | None, typer.Option(help="write the table here instead of printing it")] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Trace a network: its layers, their weights and multiply-accumulates, and what was left out.

    Example: `lumoe photonics layers --network resnet18 --csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network

    traced = load_network(network, parse_inputs(inputs))
    table = traced.table()
    if output:
        write_csv(output, table)
    elif not for_programs(table, as_json, as_csv):
        columns = [
            "name", "kind", "in_channels", "out_channels", "out_side", "images", "kernel", "groups", "weights", "macs",
        ]  # fmt: skip
        show(table[columns], f"{network}: {table['macs'].sum():,} multiply-accumulates")
    for note in traced.notes():
        typer.echo(note, err=True)


@app.command("trace")
def trace_networks(
    network: Annotated[list[str], typer.Option(help="a shipped network, or your own MODULE:FACTORY; may be repeated")],
    output: Annotated[Path, typer.Option(help="folder that gets one NETWORK.json each")],
    inputs: InputOption = None,
) -> None:
    """Trace networks into files that every other command takes as its network, without importing torch again.

    Example: `lumoe photonics trace --network alexnet --network vgg16 --output networks`
    """
    from lumoe.photonics.network.layers import parse_inputs, write_network
    from lumoe.photonics.network.load import load_network

    for name in network:
        write_network(output / f"{name}.json", load_network(name, parse_inputs(inputs)))
