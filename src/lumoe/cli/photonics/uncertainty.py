"""`lumoe photonics uncertainty`: on which assumptions the claims on the photonic accelerators hang."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import SeedOption

app = typer.Typer(no_args_is_help=True)


@app.command()
def uncertainty(
    output: Annotated[Path, typer.Option(help="table of every claim and assumption")],
    summary: Annotated[Path, typer.Option(help="table of every claim: range, and where it holds")],
    studies: Annotated[Path | None, typer.Option(help="the claims' quantities; the shipped file unless given")] = None,
    pcnna_network: Annotated[str, typer.Option(help="network of PCNNA's claims")] = "alexnet-ungrouped",
    winograd_network: Annotated[str, typer.Option(help="network of the Winograd accelerator's claims")] = "vgg16",
    samples: Annotated[int, typer.Option(min=16, help="base samples of the Sobol sequence")] = 512,
    seed: SeedOption = 0,
) -> None:
    """Sobol indices, swings and the fraction of the assumed space in which each claim holds.

    Example: `lumoe photonics uncertainty --samples 128 --output uncertainty.csv --summary summary.csv`
    """
    import pandas as pd

    from lumoe.files import write_csv
    from lumoe.photonics.network.load import load_network
    from lumoe.photonics.studies.uncertainty import COLUMNS, SUMMARY_COLUMNS, analyse, read_studies, summaries
    from lumoe.progress import track
    from lumoe.resources import data_path

    networks = {"pcnna": load_network(pcnna_network), "winograd": load_network(winograd_network)}
    found = read_studies(studies or data_path("uncertainty.yaml"))
    table = pd.concat(
        [
            analyse(study, networks[study.accelerator], samples=samples, seed=seed)
            for study in track(found, "quantities")
        ],
        ignore_index=True,
    )
    write_csv(output, table, COLUMNS)
    write_csv(summary, pd.DataFrame(summaries(table)), SUMMARY_COLUMNS)
