"""`lumoe plot adaptation`: a model under a budget that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import FigureOption

app = typer.Typer()


@app.callback(invoke_without_command=True)
def adaptation(
    table: Annotated[Path, typer.Option(help="the record of `lumoe moe adapt`")],
    output: FigureOption,
) -> None:
    """Draw budget, memory, speed, precision and time of changes on one time axis.

    Example: `lumoe plot adaptation --table results/moe/mini-mixtral/adaptation.csv --output adaptation.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.adaptation import COLUMNS, draw_adaptation

    draw_adaptation(read_csv(table, COLUMNS), output)
