"""`lumoe plot serving`: figures of what the engine did on this machine."""

from __future__ import annotations

import typer

from lumoe.cli.options import FigureOption, TableOption

app = typer.Typer(no_args_is_help=True)


@app.command()
def throughput(table: TableOption, output: FigureOption) -> None:
    """Draw measured and predicted speed against fast-tier memory.

    Example: `lumoe plot serving throughput --table results/moe/mini-mixtral/throughput.csv --output throughput.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.serving import THROUGHPUT_COLUMNS, draw_throughput

    draw_throughput(read_csv(table, THROUGHPUT_COLUMNS), output)


@app.command()
def residency(table: TableOption, output: FigureOption) -> None:
    """Draw the hit rates of residency policies.

    Example: `lumoe plot serving residency --table results/moe/mini-mixtral/residency.csv --output residency.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.serving import RESIDENCY_COLUMNS, draw_residency

    draw_residency(read_csv(table, RESIDENCY_COLUMNS), output)
