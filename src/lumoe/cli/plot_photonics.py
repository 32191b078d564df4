"""`lumoe plot photonics`: figures of the two photonic accelerators."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

for part in ("winograd", "uncertainty"):
    if find_spec(f"lumoe.cli.plot_{part}"):
        app.add_typer(import_module(f"lumoe.cli.plot_{part}").app)

OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def pcnna(
    table: Annotated[Path, typer.Option(help="PCNNA layer by layer")],
    summary: Annotated[Path, typer.Option(help="its totals")],
    output: OutputOption,
) -> None:
    """Draw the speed-up over Eyeriss, layer by layer."""
    from lumoe.files import read_csv
    from lumoe.plots.photonics import KINDS, draw_pcnna

    layers = read_csv(table, ["layer", *(f"speedup_{kind}" for kind in KINDS)])
    draw_pcnna(layers, read_csv(summary, ["quantity", "baseline", *KINDS]), output)
