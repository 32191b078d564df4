"""`lumoe plot physics`: microrings, weight banks, noise, accuracy."""

from __future__ import annotations

import typer

from lumoe.cli.options import FigureOption, TableOption

app = typer.Typer(no_args_is_help=True)


@app.command("ring-spectrum")
def ring_spectrum(table: TableOption, output: FigureOption) -> None:
    """Draw through, drop and weight of a ring.

    Example: `lumoe plot physics ring-spectrum --table figures/ring_spectrum.csv --output ring.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import SPECTRUM_COLUMNS, draw_ring_spectrum

    draw_ring_spectrum(read_csv(table, SPECTRUM_COLUMNS), output)


@app.command("detector-bits")
def detector_bits(table: TableOption, output: FigureOption) -> None:
    """Draw effective bits over received power and data rate.

    Example: `lumoe plot physics detector-bits --table figures/detector_bits.csv --output bits.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import DETECTOR_COLUMNS, draw_detector_bits

    draw_detector_bits(read_csv(table, DETECTOR_COLUMNS), output)


@app.command("weight-errors")
def weight_errors(table: TableOption, output: FigureOption) -> None:
    """Draw weight error over channel spacing, with and without calibration.

    Example: `lumoe plot physics weight-errors --table figures/weight_errors.csv --output errors.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import WEIGHT_COLUMNS, draw_weight_errors

    draw_weight_errors(read_csv(table, WEIGHT_COLUMNS), output)


@app.command("accuracy")
def accuracy(table: TableOption, output: FigureOption) -> None:
    """Draw maps of accuracy over weight bits, noise, channels and tile.

    Example: `lumoe plot physics accuracy --table figures/accuracy.csv --output accuracy.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.physics import ACCURACY_COLUMNS, draw_accuracy

    draw_accuracy(read_csv(table, ACCURACY_COLUMNS), output)
