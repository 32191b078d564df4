"""`lumoe plot`: figures from tables, one topic a group."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

for topic, about in {
    "training": "How the shipped model was trained.",
    "moe": "Mixture-of-Experts serving: speed, quality, placement.",
    "serving": "What was measured on this machine.",
    "photonics": "The two photonic accelerators.",
    "physics": "Microrings, weight banks, detectors, accuracy.",
}.items():
    app.add_typer(import_module(f"lumoe.cli.plot_{topic}").app, name=topic, help=about)
app.add_typer(import_module("lumoe.cli.plot_adaptation").app, name="adaptation")  # one command with help of its own


@app.command()
def claims(
    table: Annotated[Path, typer.Option(help="the judged claims")],
    output: Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")],
) -> None:
    """Draw the overview of claims and verdicts.

    Example: `lumoe plot claims --table results/claims.csv --output claims.svg`
    """
    from lumoe.files import read_csv
    from lumoe.pipeline.claims import COLUMNS
    from lumoe.plots.claims import draw_claims

    draw_claims(read_csv(table, COLUMNS), output)
