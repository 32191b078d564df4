"""`lumoe models`: which models can be opened, from which files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from lumoe.cli.options import JsonOption
from lumoe.cli.tables import PIPED_WIDTH
from lumoe.errors import UserError

app = typer.Typer()

Rows = Sequence[Mapping[str, Any]]
# Heads of the columns, by the keys of `--json`; those of names and marks are set as code.
FAMILIES = {
    "models": "models",
    "model_type": "model_type",
    "router": "router",
    "attention": "attention",
    "shape": "shape",
    "gguf": "in GGUF",
    "calls": "tools",
    "gpu": "GPU",
    "held_to": "logits held to",
}
FORMATS = {
    "files": "files",
    "format": "format",
    "bits": "bits a weight",
    "experts": "experts in memory",
    "rest": "everything else",
}
_CODE = ("model_type", "shape", "gguf", "calls")
ABOUT_FAMILIES = (
    "Router and attention are read off the shape named, which is in `data/shapes`. Tools: the mark that opens a call "
    "of a function, where the server reads it; each model's own chat template decides."
)
ABOUT_FORMATS = (
    "Bits of a file include scales; those of GPTQ and AWQ are for groups of 128. Memory is the processor's, for "
    "activations in bfloat16; routers and norms are never codes. On a GPU everything is at 16 bits, but for experts "
    "that `lumoe moe quantize` made."
)


@app.callback(invoke_without_command=True)
def models(
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="both tables as Markdown")] = False,
) -> None:
    """List the models that can be opened, and how their weights may be stored.

    Example: `lumoe models`
    """
    import json

    from lumoe.moe.checkpoint import supported

    if as_json and as_markdown:
        raise UserError("--json and --markdown: choose one")
    families = [row._asdict() for row in supported.families()]
    formats = [row._asdict() for row in supported.formats()]
    if as_json:
        typer.echo(json.dumps({"families": families, "formats": formats}, indent=2, ensure_ascii=False))
    elif as_markdown:
        tables = markdown(families, FAMILIES), ABOUT_FAMILIES, markdown(formats, FORMATS), ABOUT_FORMATS
        typer.echo("\n\n".join(tables))
    else:
        show(families, FAMILIES, "Models")
        show(formats, FORMATS, "Files")


def markdown(rows: Rows, heads: Mapping[str, str]) -> str:
    """Return a table as Markdown."""
    lines = [list(heads.values()), *(_cells(row, heads, code=True) for row in rows)]
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([written[0], "|---" * len(heads) + "|", *written[1:]])


def show(rows: Rows, heads: Mapping[str, str], title: str) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    view = Table(*heads.values(), title=title, title_justify="left", show_lines=True)
    for row in rows:
        view.add_row(*map(escape, _cells(row, heads)))
    console = Console()
    (console if console.is_terminal else Console(width=PIPED_WIDTH)).print(view)


def _cells(row: Mapping[str, Any], heads: Mapping[str, str], code: bool = False) -> list[str]:
    found = []
    for key in heads:
        value = row[key]
        words = value if isinstance(value, list) else [f"{value:g}" if isinstance(value, float) else str(value)]
        if isinstance(value, bool):
            words = ["yes"] if value else []
        if code:
            words = [word.replace("|", "\\|") for word in words]
        quoted = [f"`{word}`" for word in words] if code and key in _CODE else words
        nothing = "neither" if key == "held_to" else "-"
        found.append(nothing if value is None or not words else ", ".join(quoted))
    return found
