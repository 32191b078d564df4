"""`lumoe plot training`: figures of a trained model, from the record in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

ModelOption = Annotated[Path, typer.Option(help="model folder with loss.csv and training.json")]
OutputOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]


@app.command()
def loss(model: ModelOption, output: OutputOption) -> None:
    """Draw the training loss beside the held-out losses of the model and of a trigram.

    Example: `lumoe plot training loss --model data/models/mini-mixtral --output loss.svg`
    """
    import numpy as np
    import pandas as pd

    from lumoe.files import read_csv, read_json
    from lumoe.plots.moe.training import draw_training_loss

    rows = read_json(model / "training.json")["held_out"].values()
    tokens = [row["tokens"] for row in rows]
    held_out = pd.DataFrame(
        {
            "predictor": ["model", "trigram"],
            "nll": [
                np.average([np.log(row[key]) for row in rows], weights=tokens)
                for key in ("perplexity", "trigram_perplexity")
            ],
        }
    )
    draw_training_loss(read_csv(model / "loss.csv", ["tokens", "loss"]), held_out, output)


@app.command()
def load(model: ModelOption, output: OutputOption) -> None:
    """Draw how the routers share held-out text among the experts.

    Example: `lumoe plot training load --model data/models/mini-mixtral --output load.svg`
    """
    import pandas as pd

    from lumoe.files import read_json
    from lumoe.plots.moe.training import draw_expert_load

    shares = read_json(model / "training.json")["expert_shares"]
    loads = [
        {"layer": layer, "expert": expert, "share": share}
        for layer, row in enumerate(shares)
        for expert, share in enumerate(row)
    ]
    draw_expert_load(pd.DataFrame(loads), output)
