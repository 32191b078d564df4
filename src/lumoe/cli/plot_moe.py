"""`lumoe plot moe`: figures of Mixture-of-Experts serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def throughput_memory(
    table: Annotated[Path, typer.Option(help="all configurations")],
    output: OutputOption,
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
    from lumoe.plots.moe.configurations import draw_throughput_memory

    needed = ["hardware", "placement", "quantized_experts", "resident_experts", "bytes_fast", "predicted_tokens_per_s"]
    columns = ["published_tokens_per_s", "predicted_tokens_per_s", "basis"]
    configurations = read_csv(table, [*needed, *([] if anchors else columns)])
    draw_throughput_memory(
        configurations, read_csv(anchors, ["budget_bytes", *columns]) if anchors else None, output, share or ()
    )


@app.command()
def pareto(table: Annotated[Path, typer.Option(help="the frontier within each budget")], output: OutputOption) -> None:
    """Draw the Pareto frontier of speed and quality.

    Example: `lumoe plot moe pareto --table results/moe/mixtral-8x7b/pareto.csv --output pareto.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import draw_pareto

    columns = [
        "hardware",
        "budget_bytes",
        "quantized_experts",
        "resident_experts",
        "predicted_tokens_per_s",
        "perplexity",
    ]
    draw_pareto(read_csv(table, columns), output)


@app.command()
def perplexity(table: Annotated[Path, typer.Option(help="measured perplexities")], output: OutputOption) -> None:
    """Draw the perplexity increase against the number of quantised experts.

    Example: `lumoe plot moe perplexity --table results/moe/mini-mixtral/perplexity.csv --output perplexity.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import draw_perplexity

    columns = ["corpus", "policy", "seed", "equivalent_experts", "expert_bytes", "increase", "increase_low"]
    draw_perplexity(read_csv(table, [*columns, "increase_high"]), output)


@app.command()
def true_scale(
    table: Annotated[Path, typer.Option(help="the sweep that was measured on a GPU")],
    configurations: Annotated[Path, typer.Option(help="all configurations of the published hardware")],
    anchors: Annotated[Path, typer.Option(help="published speeds")],
    output: OutputOption,
    peers: Annotated[Path | None, typer.Option(help="other software on the same GPU")] = None,
) -> None:
    """Draw the speed measured at true scale beside the published range and the model of the published hardware.

    Example: `lumoe plot moe true-scale --table true_scale.csv --configurations configurations.csv --anchors
    anchors.csv --output true-scale.svg`
    """
    from lumoe.files import read_csv
    from lumoe.moe.true_scale import read_measurements
    from lumoe.plots.moe.true_scale import PEER_COLUMNS, draw_true_scale

    columns = ["hardware", "placement", "quantized_experts", "resident_experts", "bytes_fast", "predicted_tokens_per_s"]
    draw_true_scale(
        read_measurements(table),
        read_csv(configurations, columns),
        read_csv(anchors, ["budget_bytes", "published_tokens_per_s"]),
        None if peers is None else read_csv(peers, PEER_COLUMNS),
        output,
    )


@app.command()
def prediction(table: Annotated[Path, typer.Option(help="measured throughput")], output: OutputOption) -> None:
    """Draw measured against predicted throughput.

    Example: `lumoe plot moe prediction --table results/moe/mini-mixtral/throughput.csv --output prediction.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.moe.configurations import draw_prediction

    columns = ["quantized_experts", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "predicted_tokens_per_s"]
    draw_prediction(read_csv(table, [*columns, "device"]), output)
