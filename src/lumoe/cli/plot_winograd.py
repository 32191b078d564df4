"""`lumoe plot photonics`: figures of the Winograd photonic accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def winograd(
    table: Annotated[Path, typer.Option(help="summary of the designs beside every baseline")], output: OutputOption
) -> None:
    """Draw GOP/s, W and GOP/s/W of every design and electronic baseline.

    Example: `lumoe plot photonics winograd --table figures/winograd.csv --output winograd.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.winograd import FIGURES_OF_MERIT, NEEDED_LASER, draw_winograd

    merits = [*FIGURES_OF_MERIT, *(f"baseline_{name}" for name in FIGURES_OF_MERIT)]
    columns = [
        "device_set",
        "tile",
        "scope",
        "feasible_bits",
        "baseline",
        "confidence",
        *merits,
        *NEEDED_LASER.values(),
    ]
    draw_winograd(read_csv(table, columns), output)


@app.command()
def winograd_power(table: Annotated[Path, typer.Option(help="layers of every design")], output: OutputOption) -> None:
    """Draw where the power of each design goes.

    Example: `lumoe plot photonics winograd-power --table results/photonics/winograd/vgg16.csv --output power.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.winograd import draw_winograd_power

    draw_winograd_power(read_csv(table, ["device_set", "tile", "scope", "layer", "power_w", "power_rings_w"]), output)
