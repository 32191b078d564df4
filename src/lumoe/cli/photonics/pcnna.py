"""`lumoe photonics pcnna`, `waterfall`, `batches`: PCNNA in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import DevicesOption, InputOption, NetworkOption, OutputOption

app = typer.Typer(no_args_is_help=True)


@app.command("pcnna")
def model_pcnna(
    output: OutputOption,
    summary: Annotated[Path, typer.Option(help="the totals and greatest speed-ups")],
    network: NetworkOption = "alexnet-ungrouped",
    inputs: InputOption = None,
    devices: DevicesOption = "pcnna",
) -> None:
    """Model PCNNA layer by layer: as its paper counts, and with every bound that the paper leaves out.

    Example: `lumoe photonics pcnna --network alexnet --output layers.csv --summary summary.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accelerators.pcnna import Design
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies.pcnna import COLUMNS, SUMMARY_COLUMNS, layer_table, summary_table

    traced = load_network(network, parse_inputs(inputs))
    layers = layer_table(traced, load_devices(devices).values(), Design())
    write_csv(output, layers, COLUMNS)
    write_csv(summary, summary_table(layers), SUMMARY_COLUMNS)
    for note in [traced.coverage(traced.convolutions()), *traced.notes()]:
        typer.echo(note, err=True)


@app.command("waterfall")
def model_waterfall(
    output: OutputOption,
    network: NetworkOption = "alexnet-ungrouped",
    grouped_network: Annotated[str | None, typer.Option(help="the network with grouped convolutions")] = None,
    inputs: InputOption = None,
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
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.physics.parameters import load_physics
    from lumoe.photonics.studies.waterfall import COLUMNS, Remedies, waterfall

    found = load_devices(devices)
    given = parse_inputs(inputs)
    traced = load_network(network, given)
    grouped = None if grouped_network in (None, network) else load_network(grouped_network, given)
    remedies = Remedies(batch, sram_width, weight_dacs, found.si("electro_optic_settling"), grouped)
    write_csv(
        output, waterfall(traced, found.values(), channels=load_physics(found).channels, remedies=remedies), COLUMNS
    )


@app.command()
def batches(
    output: Annotated[Path, typer.Option(help="the table to write")],
    network: Annotated[list[str] | None, typer.Option(help="may be repeated  [default: both forms of AlexNet]")] = None,
    devices: Annotated[str, typer.Option(help="a device set or .yaml file")] = "pcnna",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="images per programming; may be repeated")] = None,
    weight_dacs: Annotated[list[int] | None, typer.Option(min=1, help="converters; may be repeated")] = None,
    inputs: InputOption = None,
) -> None:
    """See how far a batch hides PCNNA's weight programming, by converters, tuning, memory and grouped convolution.

    Example: `lumoe photonics batches --network alexnet --batch 1 --batch 64 --output batches.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.devices import load_devices
    from lumoe.photonics.network.layers import parse_inputs
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies.batches import COLUMNS, batch_table

    given = parse_inputs(inputs)
    networks = [load_network(name, given) for name in network or ["alexnet-ungrouped", "alexnet"]]
    table = batch_table(
        networks, load_devices(devices), batches=batch or [1, 4, 16, 64, 256], weight_dacs=weight_dacs or [1, 10, 100]
    )
    write_csv(output, table, COLUMNS)
