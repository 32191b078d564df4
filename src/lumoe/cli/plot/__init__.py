"""`lumoe plot`: figures from tables, one topic a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import FigureOption
from lumoe.cli.plot import adaptation, moe, photonics, physics, serving, training

app = typer.Typer(no_args_is_help=True)
app.add_typer(training.app, name="training", help="How the shipped model was trained.")
app.add_typer(moe.app, name="moe", help="Mixture-of-Experts serving: speed, quality, placement.")
app.add_typer(serving.app, name="serving", help="What was measured on this machine.")
app.add_typer(photonics.app, name="photonics", help="The two photonic accelerators.")
app.add_typer(physics.app, name="physics", help="Microrings, weight banks, detectors, accuracy.")
app.add_typer(adaptation.app, name="adaptation")  # one command with help of its own


@app.command()
def claims(
    table: Annotated[Path, typer.Option(help="the judged claims")],
    output: FigureOption,
) -> None:
    """Draw the overview of claims and verdicts.

    Example: `lumoe plot claims --table results/claims.csv --output claims.svg`
    """
    from lumoe.files import read_csv
    from lumoe.pipeline.claims import COLUMNS
    from lumoe.plots.claims import draw_claims

    draw_claims(read_csv(table, COLUMNS), output)
