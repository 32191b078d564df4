"""`lumoe plot photonics`: figures of the two photonic accelerators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import FigureOption

app = typer.Typer(no_args_is_help=True)


@app.command()
def pcnna(
    table: Annotated[Path, typer.Option(help="PCNNA layer by layer")],
    output: FigureOption,
    summary: Annotated[
        Path | None, typer.Option(help="its totals; the figure's own table ends with them already")
    ] = None,
) -> None:
    """Draw the speed-up over Eyeriss, layer by layer.

    Example: `lumoe plot photonics pcnna --table results/photonics/pcnna/alexnet.csv --summary
    results/photonics/pcnna/summary/alexnet.csv --output speedup.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import LAYER_COLUMNS, SUMMARY_COLUMNS, draw_pcnna

    totals = read_csv(summary, SUMMARY_COLUMNS) if summary else None
    draw_pcnna(read_csv(table, LAYER_COLUMNS), totals, output)


@app.command()
def waterfall(table: Annotated[Path, typer.Option(help="the steps")], output: FigureOption) -> None:
    """Draw PCNNA's speed-up from the published to the honest one.

    Example: `lumoe plot photonics waterfall --table figures/pcnna-waterfall.csv --output waterfall.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import WATERFALL_COLUMNS, draw_waterfall

    draw_waterfall(read_csv(table, WATERFALL_COLUMNS), output)


@app.command()
def resources(table: Annotated[Path, typer.Option(help="PCNNA layer by layer")], output: FigureOption) -> None:
    """Draw what bounds each layer of PCNNA, and its energy and area by component.

    Example: `lumoe plot photonics resources --table figures/pcnna-resources.csv --output resources.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import RESOURCE_COLUMNS, draw_resources

    draw_resources(read_csv(table, RESOURCE_COLUMNS), output)


@app.command()
def stall(
    table: Annotated[list[Path], typer.Option(help="simulated against closed form; one for each design")],
    output: FigureOption,
) -> None:
    """Draw where finite buffers cost time that the closed form does not see.

    Example: `lumoe plot photonics stall --table figures/pipeline-stall.csv --output stall.svg`
    """
    import pandas as pd

    from lumoe.files import read_csv
    from lumoe.plots.photonics.stall import COLUMNS, draw_stall

    draw_stall(pd.concat([read_csv(path, COLUMNS) for path in table], ignore_index=True), output)


@app.command()
def exploration(table: Annotated[Path, typer.Option(help="the Pareto designs")], output: FigureOption) -> None:
    """Draw the designs of a sweep that no other design beats.

    Example: `lumoe plot photonics exploration --table figures/photonics-pareto.csv --output pareto.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.exploration import PARETO_COLUMNS, draw_pareto

    draw_pareto(read_csv(table, PARETO_COLUMNS), output)


@app.command()
def batches(table: Annotated[Path, typer.Option(help="speed-ups by batch")], output: FigureOption) -> None:
    """Draw how far a batch hides the programming of PCNNA's weights.

    Example: `lumoe plot photonics batches --table figures/pcnna-batches.csv --output batches.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.exploration import BATCH_COLUMNS, draw_batches

    draw_batches(read_csv(table, BATCH_COLUMNS), output)


@app.command()
def winograd(
    table: Annotated[Path, typer.Option(help="summary of the designs beside every baseline")], output: FigureOption
) -> None:
    """Draw GOP/s, W and GOP/s/W of every design and electronic baseline.

    Example: `lumoe plot photonics winograd --table figures/winograd.csv --output winograd.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.winograd import COLUMNS, draw_winograd

    draw_winograd(read_csv(table, COLUMNS), output)


@app.command()
def winograd_power(table: Annotated[Path, typer.Option(help="layers of every design")], output: FigureOption) -> None:
    """Draw where the power of each design goes.

    Example: `lumoe plot photonics winograd-power --table results/photonics/winograd/vgg16.csv --output power.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.winograd import POWER_COLUMNS, draw_winograd_power

    draw_winograd_power(read_csv(table, POWER_COLUMNS), output)


@app.command()
def tornado(
    table: Annotated[Path, typer.Option(help="table of every claim and assumption")],
    claim: Annotated[list[str], typer.Option(help="the claim to draw; may be repeated")],
    output: Annotated[list[Path], typer.Option(help="its figure, one for each claim; .svg, .png and .csv are written")],
) -> None:
    """Draw how far each assumption moves the quantity that a claim hangs on.

    Example: `lumoe plot photonics tornado --table figures/uncertainty-winograd-speed.csv --claim winograd-speed
    --output tornado.svg`
    """
    from lumoe.errors import UserError
    from lumoe.files import read_csv
    from lumoe.plots.photonics.uncertainty import COLUMNS, draw_tornado

    if len(claim) != len(output):
        raise UserError(f"{len(claim)} --claim but {len(output)} --output: give each claim its figure")
    rows = read_csv(table, COLUMNS)
    for name, path in zip(claim, output, strict=True):
        draw_tornado(rows, name, path)
