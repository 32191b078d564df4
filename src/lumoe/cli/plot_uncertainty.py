"""`lumoe plot photonics tornado`: which assumption moves a claim how far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


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
