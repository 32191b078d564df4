"""`lumoe claims`: the papers' claims against the regenerated values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import CsvOption, JsonOption
from lumoe.cli.tables import for_programs
from lumoe.errors import UserError
from lumoe.resources import data_path

app = typer.Typer(no_args_is_help=True)

ResultsOption = Annotated[Path, typer.Option(help="folder of the regenerated tables")]
ClaimsOption = Annotated[Path | None, typer.Option("--claims", help="claims file  [default: the shipped one]")]


@app.command("judge")
def judge_claims(
    output: Annotated[Path, typer.Option(help="the table to write")],
    results: ResultsOption = Path("results"),
    claims: ClaimsOption = None,
    name: Annotated[list[str] | None, typer.Option(help="KEY=VALUE that fills {KEY} in table paths")] = None,
) -> None:
    """Judge every claim from the regenerated tables and write `claims.csv`.

    Example: `lumoe claims judge --results results --name pcnna_network=alexnet-ungrouped --output claims.csv`
    """
    from lumoe.files import write_csv
    from lumoe.pipeline.claims import COLUMNS, judge, read_claims

    pairs = [item.partition("=") for item in name or []]
    for key, separator, _ in pairs:
        if not separator:
            raise UserError(f"--name {key}: expected KEY=VALUE")
    names = {key: value for key, _, value in pairs}
    write_csv(output, judge(read_claims(claims or data_path("claims.yaml")), results, names), COLUMNS)


@app.command("show")
def show_claims(
    table: Annotated[Path, typer.Option(help="a judged table")] = Path("results/claims.csv"),
    all_rows: Annotated[bool, typer.Option("--all", help="also what stands beside each claim")] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    overview: Annotated[Path | None, typer.Option(help="write the printed columns here, as CSV")] = None,
) -> None:
    """Print the judged claims, one line each. Example: `lumoe claims show --all --csv`"""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lumoe.files import read_csv, write_csv
    from lumoe.pipeline.claims import COLUMNS, overall, view_of

    rows = read_csv(table, COLUMNS)
    if for_programs(rows if all_rows else overall(rows), as_json, as_csv):
        return
    printed = view_of(rows if all_rows else overall(rows))
    if overview is not None:
        write_csv(overview, printed)
    console = Console(width=None if Console().is_terminal else 150)
    view = Table(*printed.columns, title="Claims")
    colours = {
        "reproduced": "green",
        "reproduced-under-assumptions": "green",
        "partly": "yellow",
        "not-reproduced": "red",
    }
    for row in printed.to_dict("records"):
        style = colours.get(row["verdict"], "")
        cells = [escape(str(cell)) for cell in row.values()]
        view.add_row(*cells[:-1], f"[{style}]{cells[-1]}[/]" if style else cells[-1])
    console.print(view)
    judged = overall(rows)["verdict"].value_counts()
    console.print(", ".join(f"{count} {name}" for name, count in judged.items()) + f"; details in {table}")


def _explain(claim: str | None) -> None:
    if claim is not None:
        explain_claim(claim)
        raise typer.Exit


@app.callback()
def _options(
    explain: Annotated[
        str | None,
        typer.Option(callback=_explain, is_eager=True, metavar="CLAIM", help="as `lumoe claims explain CLAIM`"),
    ] = None,
) -> None:
    pass


@app.command("explain")
def explain_claim(
    claim: Annotated[str, typer.Argument(help="name of a claim, such as pcnna-optical-core")],
    claims: ClaimsOption = None,
    configfile: Annotated[Path | None, typer.Option(help="settings laid over the defaults, as for snakemake")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the chain as JSON, for programs")] = False,
) -> None:
    """Show what a claim rests on: quantity, table, rule, inputs, sources. Run it in the checkout.

    Rules and inputs are asked of the pipeline itself. Example: `lumoe claims explain pcnna-optical-core`
    """
    import json

    from rich.console import Console

    from lumoe.cli.explain_view import tree
    from lumoe.pipeline.claims import read_claims
    from lumoe.pipeline.explain import JUDGE, explain, find_claim
    from lumoe.pipeline.graph import find_root, plan

    wanted = find_claim(read_claims(claims or data_path("claims.yaml")), claim)
    root = find_root()
    graph = plan(root, [JUDGE], [configfile] if configfile else [])
    record = explain(wanted, graph, root)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        Console(width=None if Console().is_terminal else 160).print(tree(record))
