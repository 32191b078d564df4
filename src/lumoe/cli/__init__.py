"""The command line: `lumoe GROUP COMMAND`.

Exit codes: 0 done, 1 a failure of the program, 2 a mistake in what was given.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

from lumoe import __version__
from lumoe.cli.doctor import doctor
from lumoe.errors import UserError
from lumoe.progress import be_quiet

GROUPS = {
    "corpus": "Text corpora: build, inspect.",
    "model": "Train and describe Mixtral-architecture models.",
    "models": "List the models that can be opened, and how their weights may be stored.",
    "moe": "Quantise, plan, measure and serve a Mixture-of-Experts model under a byte budget.",
    "serve": "Serve a model over HTTP, as OpenAI does, under a byte budget that can change.",
    "photonics": "Time, energy, area and accuracy of microring accelerators.",
    "claims": "Hold the regenerated values against what the papers claim.",
    "plot": "Draw a figure from its table.",
    "config": "Check and describe the settings.",
    "provenance": "Where each result comes from: commit, lock, corpora, seed, device, time.",
}

COMPLETION = "_LUMOE_COMPLETE"  # set by the shell while it completes a command

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=__doc__, pretty_exceptions_enable=False)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lumoe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="print the version"),
    quiet: bool = typer.Option(False, "--quiet", help="no progress on standard error"),
) -> None:
    if quiet:
        be_quiet()


app.command("doctor")(doctor)


def _load(name: str) -> None:
    group = import_module(f"lumoe.cli.{name}").app
    # A group that is one command has that command's help, example included.
    if group.registered_callback is not None and group.registered_callback.invoke_without_command is True:
        app.add_typer(group, name=name)
    else:
        app.add_typer(group, name=name, help=GROUPS[name])


def main() -> None:
    """Run the command line; a user's mistake prints one sentence and exits with code 2."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")][:1]
    asked = [word for word in words if word in GROUPS]
    # Groups take long to import: load the one that was asked for, all of them only to complete what is typed. The
    # overview and a misspelt name need no more than their names.
    for name in GROUPS:
        if name in asked or COMPLETION in os.environ:
            _load(name)
        elif not asked and words != ["doctor"]:
            app.add_typer(typer.Typer(help=GROUPS[name]), name=name)
    try:
        app()
    except UserError as error:
        print(f"lumoe: {error}", file=sys.stderr)
        sys.exit(2)
