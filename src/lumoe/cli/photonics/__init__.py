"""`lumoe photonics`: time, energy, area and accuracy of microring accelerators."""

from __future__ import annotations

import typer

from lumoe.cli.photonics import accuracy, crosscheck, design, network, pcnna, physics, uncertainty, winograd

app = typer.Typer(no_args_is_help=True)
for part in (design, network, pcnna, winograd, physics, accuracy, uncertainty, crosscheck):
    app.add_typer(part.app)
