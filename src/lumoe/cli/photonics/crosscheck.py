"""`lumoe photonics crosscheck`: published numbers beside what this package computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def crosscheck(
    output: Annotated[Path, typer.Option(help="table of published and computed numbers")],
    published: Annotated[Path | None, typer.Option(help="published numbers; the shipped table unless given")] = None,
    eyeriss: Annotated[Path | None, typer.Option(help="Eyeriss, layer by layer")] = None,
    baselines: Annotated[Path | None, typer.Option(help="electronic platforms")] = None,
    albireo: Annotated[Path | None, typer.Option(help="how many parts Albireo has")] = None,
) -> None:
    """Hold Eyeriss' totals, networks' counts, PCNNA's rings and Albireo's parts against what is computed here.

    Example: `lumoe photonics crosscheck --output crosscheck.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.studies.crosscheck import COLUMNS
    from lumoe.photonics.studies.crosscheck import crosscheck as compare
    from lumoe.resources import data_path

    table = compare(
        published or data_path("published.csv"),
        eyeriss or data_path("eyeriss_layers.csv"),
        baselines or data_path("baselines.csv"),
        albireo or data_path("albireo.yaml"),
    )
    write_csv(output, table, COLUMNS)
