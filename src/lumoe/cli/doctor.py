"""`lumoe doctor`: what this machine has, what it can run, what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import CsvOption, JsonOption
from lumoe.cli.tables import for_programs

COLOURS = {"ok": "green", "limited": "yellow", "missing": "red"}


def doctor(
    folder: Annotated[Path, typer.Option(help="where results would go")] = Path(),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Say what this machine has, what it can run and what is missing.

    Exit code 0 where the pipeline can run, 1 where something it needs is missing. Example: `lumoe doctor`
    """
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from lumoe.pipeline.doctor import examine

    findings = examine(folder)
    if not for_programs(pd.DataFrame([asdict(finding) for finding in findings]), as_json, as_csv):
        view = Table("", "what", "found", "means", box=None, title="lumoe doctor", title_justify="left")
        for finding in findings:
            state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
            view.add_row(state, finding.what, finding.found, finding.means)
        Console(width=None if Console().is_terminal else 150).print(view)
    if any(finding.state == "missing" and finding.needed for finding in findings):
        raise typer.Exit(1)
