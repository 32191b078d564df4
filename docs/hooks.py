"""Pages that are written by the program itself: the command line and the settings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.main import get_command

from lumoe.cli import GROUPS, app
from lumoe.pipeline.settings import default_yaml


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the marks of the reference pages."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands())
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", f"```yaml\n{default_yaml()}```")
    return markdown


def commands() -> str:
    """Return every command with its help and options as Markdown."""
    for name, about in GROUPS.items():
        if name not in {group.name for group in app.registered_groups}:
            app.add_typer(import_module(f"lumoe.cli.{name}").app, name=name, help=about)
    root = get_command(app)
    return "\n".join(section(root, "lumoe", 2))


def section(command: Any, name: str, level: int) -> list[str]:
    """Return the section of `command` and of those below it."""
    context = typer.Context(command, info_name=name)
    lines = [] if name == "lumoe" else [f"{'#' * min(level, 4)} `{name}`", "", (command.help or "").strip(), ""]
    options = [option for option in command.get_params(context) if option.name != "help"]
    if options and name != "lumoe":
        lines += ["| option | default | what |", "|---|---|---|"]
        lines += [row(option) for option in options] + [""]
    for key in getattr(command, "commands", {}):
        lines += section(command.commands[key], f"{name} {key}", level + 1)
    return lines


def row(option: Any) -> str:
    """Return the table row of one option or argument."""
    words = ", ".join(f"`{word}`" for word in option.opts) if option.param_type_name == "option" else f"`{option.name}`"
    default = "required" if option.required else "" if option.default in (None, False, ()) else f"`{option.default}`"
    text = " ".join((getattr(option, "help", None) or "").split()).replace("|", "\\|")
    return f"| {words} | {default} | {text} |"
