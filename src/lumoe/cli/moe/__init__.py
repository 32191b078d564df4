"""`lumoe moe`: plan, quantise, run and measure a Mixture-of-Experts model under a byte budget."""

from __future__ import annotations

import typer

from lumoe.cli.moe import adapt, evaluate, measure, plan, quantize, run

# What somebody who serves a model needs, in the order of use; the others are the experiments'.
FIRST = ("quantize", "calibrate", "sensitivity", "plan", "generate")

app = typer.Typer(no_args_is_help=True)
commands = {
    command.name or command.callback.__name__: command
    for part in (plan, quantize, run, measure, evaluate, adapt)
    for command in part.app.registered_commands
    if command.callback is not None
}
for name, command in commands.items():
    command.rich_help_panel = "To serve a model (then: lumoe serve)" if name in FIRST else "Experiments"
app.registered_commands = [commands[name] for name in dict.fromkeys((*FIRST, *commands))]
