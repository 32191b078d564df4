"""`lumoe provenance`: where each result comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import CsvOption
from lumoe.cli.tables import for_programs

app = typer.Typer(no_args_is_help=True)


@app.command("record")
def record_provenance(
    output: Annotated[Path, typer.Option(help="the table to write")] = Path("results/provenance.csv"),
    results: Annotated[Path, typer.Option(help="folder of the regenerated tables")] = Path("results"),
    seed: Annotated[int, typer.Option(min=0, help="the pipeline's seed")] = 0,
) -> None:
    """Note commit, lock, corpora, seed, device and time of every result. The pipeline does it at its end.

    Example: `lumoe provenance record --results results --output results/provenance.csv`
    """
    from lumoe.files import write_csv
    from lumoe.pipeline.provenance import COLUMNS, record

    write_csv(output, record(Path.cwd(), results, seed), COLUMNS)


@app.command("show")
def show_provenance(
    file: Annotated[str, typer.Argument(help="a result, as named in the table")],
    table: Annotated[Path, typer.Option(help="what `record` wrote")] = Path("results/provenance.csv"),
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, for programs")] = False,
    as_csv: CsvOption = False,
) -> None:
    """Print where one result comes from.

    Example: `lumoe provenance show results/claims.csv`
    """
    from rich.console import Console
    from rich.table import Table

    from lumoe.files import read_csv
    from lumoe.pipeline.provenance import COLUMNS, describe

    rows = read_csv(table, COLUMNS)
    row = describe(rows, file)
    if for_programs(rows[rows["file"] == file], False, as_csv):
        return
    if as_json:
        typer.echo(json.dumps(row, indent=2, ensure_ascii=False))
        return
    view = Table(show_header=False, box=None)
    for key, value in row.items():
        view.add_row(f"[bold]{key}[/]", "-" if value is None else str(value))
    Console(width=None if Console().is_terminal else 150).print(view)
