"""`lumoe photonics winograd`: throughput, power and area of the Winograd photonic accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import InputOption

app = typer.Typer(no_args_is_help=True)


@app.command()
def winograd(
    layers: Annotated[Path, typer.Option(help="table of every device set, tile, scope and convolution")],
    summary: Annotated[Path, typer.Option(help="table of every design beside every electronic baseline")],
    device_set: Annotated[list[str], typer.Option(help="device set: a name or a .yaml file; may be repeated")],
    tile: Annotated[list[int], typer.Option(help="m of F(m x m, r x r); 1 is no Winograd; may be repeated")],
    network: Annotated[str, typer.Option(help="a shipped network or your own module:factory")] = "vgg16",
    inputs: InputOption = None,
    batch: Annotated[int, typer.Option(min=1, help="images that share one programming of the weights")] = 1,
    baselines: Annotated[Path | None, typer.Option(help="electronic baselines; the shipped table unless given")] = None,
) -> None:
    """GOP/s, W, GOP/s/W and area of every convolution, beside electronic accelerators.

    Example: `lumoe photonics winograd --network vgg16 --device-set moderate --tile 1 --tile 4 --layers layers.csv
    --summary summary.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies.baselines import platforms
    from lumoe.photonics.studies.winograd import COLUMNS, SUMMARY_COLUMNS, layer_table, summary_table
    from lumoe.photonics.studies.winograd_link import link, with_links

    sets = {Path(name).stem: load_devices(name) for name in device_set}
    traced = load_network(network, parse_inputs(inputs))
    for note in [traced.coverage(traced.convolutions()), *traced.notes()]:
        typer.echo(f"lumoe: {note}", err=True)
    table = layer_table(traced, {name: devices.values() for name, devices in sets.items()}, tile, batch=batch)
    table = with_links(table, {name: link(devices) for name, devices in sets.items()})
    write_csv(layers, table, COLUMNS)
    write_csv(summary, summary_table(table, platforms(baselines)), SUMMARY_COLUMNS)
