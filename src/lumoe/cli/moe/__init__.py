"""`lumoe moe`: plan, quantise, run and measure a Mixture-of-Experts model under a byte budget."""

from __future__ import annotations

import typer

from lumoe.cli.moe import adapt, evaluate, measure, plan, quantize, run

app = typer.Typer(no_args_is_help=True)
for part in (plan, quantize, run, measure, evaluate, adapt):
    app.add_typer(part.app)
