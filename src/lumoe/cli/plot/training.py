"""`lumoe plot training`: figures of a trained model, from the record in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import FigureOption

app = typer.Typer(no_args_is_help=True)

TrainedOption = Annotated[Path, typer.Option("--model", help="model folder with loss.csv and training.json")]


@app.command()
def loss(model: TrainedOption, output: FigureOption) -> None:
    """Draw the training loss beside the held-out losses of the model and of a trigram.

    Example: `lumoe plot training loss --model data/models/mini-mixtral --output loss.svg`
    """
    from lumoe.files import read_csv, read_json
    from lumoe.plots.moe.training import LOSS_COLUMNS, draw_training_loss, held_out_losses

    held_out = held_out_losses(read_json(model / "training.json"))
    draw_training_loss(read_csv(model / "loss.csv", LOSS_COLUMNS), held_out, output)


@app.command()
def load(model: TrainedOption, output: FigureOption) -> None:
    """Draw how the routers share held-out text among the experts.

    Example: `lumoe plot training load --model data/models/mini-mixtral --output load.svg`
    """
    from lumoe.files import read_json
    from lumoe.plots.moe.training import draw_expert_load, expert_loads

    draw_expert_load(expert_loads(read_json(model / "training.json")), output)
