"""`lumoe plot photonics tornado`: which assumption moves a claim how far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def tornado(
    table: Annotated[Path, typer.Option(help="table of every claim and assumption")],
    claim: Annotated[str, typer.Option(help="the claim to draw")],
    output: Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")],
) -> None:
    """Draw how far each assumption moves the quantity that a claim hangs on."""
    from lumoe.files import read_csv
    from lumoe.plots.uncertainty import COLUMNS, draw_tornado

    draw_tornado(read_csv(table, COLUMNS), claim, output)
