"""`lumoe plot physics`: microrings, weight banks, noise, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

TableOption = Annotated[Path, typer.Option(help="the table to draw")]
OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command("ring-spectrum")
def ring_spectrum(table: TableOption, output: OutputOption) -> None:
    """Draw through, drop and weight of a ring.

    Example: `lumoe plot physics ring-spectrum --table figures/ring_spectrum.csv --output ring.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import draw_ring_spectrum

    draw_ring_spectrum(read_csv(table, ("detuning_linewidths", "through", "drop", "weight")), output)


@app.command("detector-bits")
def detector_bits(table: TableOption, output: OutputOption) -> None:
    """Draw effective bits over received power and data rate.

    Example: `lumoe plot physics detector-bits --table figures/detector_bits.csv --output bits.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import draw_detector_bits

    columns = ("rate_hz", "received_power_dbm", "effective_bits", "ceiling_bits")
    draw_detector_bits(read_csv(table, columns), output)


@app.command("weight-errors")
def weight_errors(table: TableOption, output: OutputOption) -> None:
    """Draw weight error over channel spacing, with and without calibration.

    Example: `lumoe plot physics weight-errors --table figures/weight_errors.csv --output errors.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import draw_weight_errors

    columns = ("spacing_linewidths", "method", "rms_error", "lorentzian_sum")
    draw_weight_errors(read_csv(table, columns), output)


@app.command("accuracy")
def accuracy(table: TableOption, output: OutputOption) -> None:
    """Draw maps of accuracy over weight bits, noise, channels and tile.

    Example: `lumoe plot physics accuracy --table figures/accuracy.csv --output accuracy.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import draw_accuracy

    columns = ("tile", "channels", "weight_bits", "noise", "accuracy", "accuracy_float", "samples")
    draw_accuracy(read_csv(table, columns), output)
