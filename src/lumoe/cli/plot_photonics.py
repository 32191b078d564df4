"""`lumoe plot photonics`: figures of the two photonic accelerators."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

for part in ("winograd", "uncertainty"):
    app.add_typer(import_module(f"lumoe.cli.plot_{part}").app)

OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def pcnna(
    table: Annotated[Path, typer.Option(help="PCNNA layer by layer")],
    output: OutputOption,
    summary: Annotated[
        Path | None, typer.Option(help="its totals; the figure's own table ends with them already")
    ] = None,
) -> None:
    """Draw the speed-up over Eyeriss, layer by layer.

    Example: `lumoe plot photonics pcnna --table results/photonics/pcnna/alexnet.csv --summary
    results/photonics/pcnna/summary/alexnet.csv --output speedup.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import KINDS, draw_pcnna

    layers = read_csv(table, ["layer", *(f"speedup_{kind}" for kind in KINDS)])
    totals = read_csv(summary, ["quantity", "baseline", *KINDS]) if summary else None
    draw_pcnna(layers, totals, output)


@app.command()
def waterfall(table: Annotated[Path, typer.Option(help="the steps")], output: OutputOption) -> None:
    """Draw PCNNA's speed-up from the published to the honest one.

    Example: `lumoe plot photonics waterfall --table figures/pcnna-waterfall.csv --output waterfall.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import draw_waterfall

    columns = ["step", "kind", "speedup_network", "speedup_max", "speedup_alone", "limit"]
    draw_waterfall(read_csv(table, columns), output)


@app.command()
def resources(table: Annotated[Path, typer.Option(help="PCNNA layer by layer")], output: OutputOption) -> None:
    """Draw what bounds each layer of PCNNA, and its energy and area by component.

    Example: `lumoe plot photonics resources --table figures/pcnna-resources.csv --output resources.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.pcnna import RESOURCES, draw_resources

    columns = ["layer", "all_bounds_s", "all_bounds_limit", *(f"{name}_s" for name in RESOURCES)]
    draw_resources(read_csv(table, columns), output)


@app.command()
def stall(
    table: Annotated[list[Path], typer.Option(help="simulated against closed form; one for each design")],
    output: OutputOption,
) -> None:
    """Draw where finite buffers cost time that the closed form does not see.

    Example: `lumoe plot photonics stall --table figures/pipeline-stall.csv --output stall.svg`
    """
    import pandas as pd

    from lumoe.files import read_csv
    from lumoe.plots.photonics.stall import draw_stall

    columns = ["design", "sram_kb", "layer", "closed_form_s", "simulated_s", "difference", "refetches"]
    draw_stall(pd.concat([read_csv(path, columns) for path in table], ignore_index=True), output)


@app.command()
def exploration(table: Annotated[Path, typer.Option(help="the Pareto designs")], output: OutputOption) -> None:
    """Draw the designs of a sweep that no other design beats.

    Example: `lumoe plot photonics exploration --table figures/photonics-pareto.csv --output pareto.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.exploration import FIGURES, draw_pareto

    draw_pareto(read_csv(table, ["design", "device_set", "network", *FIGURES]), output)


@app.command()
def batches(table: Annotated[Path, typer.Option(help="speed-ups by batch")], output: OutputOption) -> None:
    """Draw how far a batch hides the programming of PCNNA's weights.

    Example: `lumoe plot photonics batches --table figures/pcnna-batches.csv --output batches.svg`
    """
    from lumoe.files import read_csv
    from lumoe.plots.photonics.exploration import draw_batches

    columns = ["network", "memory", "tuning", "weight_dacs", "batch", "speedup_network"]
    draw_batches(read_csv(table, columns), output)
