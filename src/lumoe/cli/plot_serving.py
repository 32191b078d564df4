"""`lumoe plot serving`: figures of what the engine did on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

TableOption = Annotated[Path, typer.Option(help="the table to draw")]
OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def throughput(table: TableOption, output: OutputOption) -> None:
    """Draw measured and predicted speed against fast-tier memory.

    Example: `lumoe plot serving throughput --table results/moe/mini-mixtral/throughput.csv --output throughput.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.serving import THROUGHPUT_COLUMNS, draw_throughput

    draw_throughput(read_csv(table, THROUGHPUT_COLUMNS), output)


@app.command()
def residency(table: TableOption, output: OutputOption) -> None:
    """Draw the hit rates of residency policies.

    Example: `lumoe plot serving residency --table results/moe/mini-mixtral/residency.csv --output residency.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.serving import draw_residency

    draw_residency(read_csv(table, ("policy", "resident_share", "hit_rate")), output)
