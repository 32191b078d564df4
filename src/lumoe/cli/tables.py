"""Tables in the terminal."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 150


def show(table: pd.DataFrame, title: str) -> None:
    """Print `table` with one line a row; numbers keep four significant digits."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    view = Table(*map(str, table.columns), title=title, title_justify="left")
    for column, kind in zip(view.columns, table.dtypes, strict=True):
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
