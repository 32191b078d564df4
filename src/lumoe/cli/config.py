"""`lumoe config`: the settings, their schema and their defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lumoe.errors import UserError, about
from lumoe.files import read_yaml, write_json, write_text
from lumoe.pipeline.settings import Settings, default_yaml, validate
from lumoe.resources import SUMS, data_sums

app = typer.Typer(no_args_is_help=True)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="a configuration file")]) -> None:
    """Check a configuration file and print the settings it gives, defaults filled in.

    Example: `lumoe config check config/smoke.yaml`
    """
    values = read_yaml(file) or {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: the top level must be a mapping of settings")
    with about(file):
        settings = validate(values)
    typer.echo(json.dumps(settings.model_dump(), indent=2))


@app.command()
def write(
    defaults: Annotated[Path, typer.Option(help="where the defaults go")] = Path("config/default.yaml"),
    schema: Annotated[Path, typer.Option(help="where the JSON schema goes")] = Path("config/schema.json"),
    data: Annotated[Path, typer.Option(help="folder of data files whose sums are recorded")] = Path("data"),
) -> None:
    """Write the default configuration and its JSON schema from the models of settings, and the sums of the data files.

    Example: `lumoe config write`
    """
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; run it in the checkout, or name the folder with --data")
    write_text(defaults, default_yaml())
    write_json(schema, Settings.model_json_schema())
    write_text(data / SUMS, data_sums(data))
