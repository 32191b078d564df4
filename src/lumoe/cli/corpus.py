"""`lumoe corpus`: build text corpora and say what is in them."""

from __future__ import annotations

from pathlib import Path

import typer

from lumoe.cli.options import CsvOption, JsonOption
from lumoe.cli.tables import for_programs, show

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _corpus() -> None:
    """Text corpora: docstrings of installed packages, folders of plain text, data sets of the Hugging Face hub."""


@app.command()
def build(
    source: list[str] = typer.Option(help="NAME=package:P, NAME=folder:PATH[:PROTOCOL] or NAME=hub:REPO[:SUBSET]"),
    output: Path = typer.Option(help="folder that gets one folder per corpus"),
    validation: float = typer.Option(0.03, min=0.0, max=0.5, help="share of documents, packages only"),
    test: float = typer.Option(0.12, min=0.001, max=0.5, help="share of documents, packages only"),
    minimum_characters: int = typer.Option(100, min=1, help="shorter docstrings are left out"),
    hub_documents: int = typer.Option(20000, min=1, help="at most so many rows of a hub split without a protocol"),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Build all corpora together, because documents are deduplicated across packages, in the order given.

    Example: `lumoe corpus build --source scipy=package:scipy --source mine=folder:my-texts --output corpora`
    """
    import pandas as pd

    from lumoe.moe.corpora.build import build_corpora, parse_assignments

    built = build_corpora(
        parse_assignments(source),
        output,
        validation=validation,
        test=test,
        minimum_characters=minimum_characters,
        hub_documents=hub_documents,
    )
    table = pd.DataFrame(
        [
            {"corpus": name, "split": split, "documents": part["documents"], "characters": part["characters"]}
            for name, statistics in built.items()
            for split, part in statistics["splits"].items()
        ]
    )
    if not for_programs(table, as_json, as_csv):
        show(table, f"Corpora in {output}")


@app.command("show")
def show_corpora(
    folder: list[Path] = typer.Argument(help="corpus folders"),
    lines: int = typer.Option(0, min=0, help="print the first lines of the test split"),
) -> None:
    """Print the statistics of corpora, and the beginning of their test text.

    Example: `lumoe corpus show corpora/scipy --lines 5`
    """
    import json

    from lumoe.moe.corpora.corpus import read_statistics, read_text

    for path in folder:
        typer.echo(f"{path}: {json.dumps(read_statistics(path), indent=2, ensure_ascii=False)}")
        if lines:
            typer.echo("\n".join(read_text(path, "test").splitlines()[:lines]))
