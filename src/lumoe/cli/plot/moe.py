"""`lumoe plot moe`: figures of Mixture-of-Experts serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import FigureOption

app = typer.Typer(no_args_is_help=True)


@app.command()
def throughput_memory(
    table: Annotated[Path, typer.Option(help="all configurations")],
    output: FigureOption,
    anchors: Annotated[
        Path | None, typer.Option(help="published speeds with their predictions; the figure's own table has them")
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="share of quantised experts, one line each; all in the table by default"),
    ] = None,
) -> None:
    """Draw speed against fast-tier memory.

    Example: `lumoe plot moe throughput-memory --table results/moe/mixtral-8x7b/configurations.csv --anchors
    results/moe/mixtral-8x7b/anchors.csv --share 0 --share 1 --output speed.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import ANCHOR_COLUMNS, CONFIGURATION_COLUMNS, draw_throughput_memory

    # The figure's own table holds the published speeds too.
    configurations = read_csv(table, [*CONFIGURATION_COLUMNS, *(() if anchors else ANCHOR_COLUMNS)])
    published = read_csv(anchors, ["budget_bytes", *ANCHOR_COLUMNS]) if anchors else None
    draw_throughput_memory(configurations, published, output, share or ())


@app.command()
def pareto(table: Annotated[Path, typer.Option(help="the frontier within each budget")], output: FigureOption) -> None:
    """Draw the Pareto frontier of speed and quality.

    Example: `lumoe plot moe pareto --table results/moe/mixtral-8x7b/pareto.csv --output pareto.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import PARETO_COLUMNS, draw_pareto

    draw_pareto(read_csv(table, PARETO_COLUMNS), output)


@app.command()
def perplexity(table: Annotated[Path, typer.Option(help="measured perplexities")], output: FigureOption) -> None:
    """Draw the perplexity increase against the number of quantised experts.

    Example: `lumoe plot moe perplexity --table results/moe/mini-mixtral/perplexity.csv --output perplexity.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import PERPLEXITY_COLUMNS, draw_perplexity

    draw_perplexity(read_csv(table, PERPLEXITY_COLUMNS), output)


@app.command()
def true_scale(
    table: Annotated[Path, typer.Option(help="the sweep that was measured on a GPU")],
    configurations: Annotated[Path, typer.Option(help="all configurations of the published hardware")],
    anchors: Annotated[Path, typer.Option(help="published speeds")],
    output: FigureOption,
    peers: Annotated[Path | None, typer.Option(help="other software on the same GPU")] = None,
) -> None:
    """Draw the speed measured at true scale beside the published range and the model of the published hardware.

    Example: `lumoe plot moe true-scale --table true_scale.csv --configurations configurations.csv --anchors
    anchors.csv --output true-scale.svg`
    """
    from lumoe.files import read_csv
    from lumoe.moe.measurement.true_scale import read_measurements
    from lumoe.plots.moe.configurations import CONFIGURATION_COLUMNS
    from lumoe.plots.moe.true_scale import ANCHOR_COLUMNS, PEER_COLUMNS, draw_true_scale

    draw_true_scale(
        read_measurements(table),
        read_csv(configurations, CONFIGURATION_COLUMNS),
        read_csv(anchors, ANCHOR_COLUMNS),
        None if peers is None else read_csv(peers, PEER_COLUMNS),
        output,
    )


@app.command()
def prediction(table: Annotated[Path, typer.Option(help="measured throughput")], output: FigureOption) -> None:
    """Draw measured against predicted throughput.

    Example: `lumoe plot moe prediction --table results/moe/mini-mixtral/throughput.csv --output prediction.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import PREDICTION_COLUMNS, draw_prediction

    draw_prediction(read_csv(table, PREDICTION_COLUMNS), output)
