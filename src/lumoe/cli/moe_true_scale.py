"""`lumoe moe true-scale`: what was measured at Mixtral 8x7B's real shape on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def true_scale(
    folder: Annotated[Path, typer.Option(help="folder with true_scale.csv, if it has been measured")],
    output: Annotated[Path, typer.Option(help="the summary; without rows where nothing has been measured")],
) -> None:
    """Summarise a sweep at true scale: range, ratio, gain over the paper's scheme, error of the cost model.

    Example: `lumoe moe true-scale --folder data/measurements --output true-scale.csv`
    """
    import pandas as pd

    from lumoe.files import write_csv
    from lumoe.moe.true_scale import SUMMARY, describe, read_measurements, summarize

    path = folder / "true_scale.csv"
    if not path.is_file():
        write_csv(output, pd.DataFrame(columns=list(SUMMARY)), SUMMARY)
        typer.echo(f"{path}: not measured; docs/howto/true-scale.md says how to")
        return
    summary = summarize(read_measurements(path))
    write_csv(output, summary, SUMMARY)
    typer.echo(describe(summary))
