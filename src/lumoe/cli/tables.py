"""Tables: for people in the terminal, as JSON or CSV for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lumoe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PIPED_WIDTH = 150


def for_programs(table: pd.DataFrame, as_json: bool, as_csv: bool) -> bool:
    """Print `table` as JSON or CSV if one of them is asked for, and return whether it was.

    Raises:
        UserError: both are.
    """
    one_format(as_json, as_csv)
    if as_json:
        typer.echo(table.to_json(orient="records", indent=2, force_ascii=False))
    elif as_csv:
        typer.echo(table.to_csv(index=False, lineterminator="\n"), nl=False)
    return as_json or as_csv


def one_format(as_json: bool, as_csv: bool) -> None:
    """Raise UserError if both formats are asked for."""
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one")


def show(table: pd.DataFrame, title: str) -> None:
    """Print `table` with one line a row; numbers keep four significant digits."""
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    view = Table(*map(str, table.columns), title=title, title_justify="left")
    for column, kind in zip(view.columns, table.dtypes, strict=True):
        column.overflow = "fold"  # what is cut off ends in a character that not every terminal has
        column.justify = "right" if pd.api.types.is_numeric_dtype(kind) else "left"
    for row in table.itertuples(index=False):
        view.add_row(*(_cell(value) for value in row))
    console.print(view)


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
