"""How the default model was trained, and how its routers share the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lumoe.plots.style import COLUMN_WIDTH_IN, OKABE_ITO, basis_note, heatmap, save, use_style

_SMOOTHING_STEPS = 25
LOSS_COLUMNS = ("tokens", "loss")


def held_out_losses(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return `predictor` and `nll` (nats per token, over all corpora) of the model and the trigram."""
    rows = record["held_out"].values()
    tokens = [row["tokens"] for row in rows]
    return pd.DataFrame(
        {
            "predictor": ["model", "trigram"],
            "nll": [
                np.average([np.log(row[key]) for row in rows], weights=tokens)
                for key in ("perplexity", "trigram_perplexity")
            ],
        }
    )


def expert_loads(record: Mapping[str, Any]) -> pd.DataFrame:
    """Return `layer`, `expert` and `share` of the routed tokens, of a training record."""
    loads = [
        {"layer": layer, "expert": expert, "share": share}
        for layer, row in enumerate(record["expert_shares"])
        for expert, share in enumerate(row)
    ]
    return pd.DataFrame(loads)


def draw_training_loss(losses: pd.DataFrame, held_out: pd.DataFrame, output: Path) -> None:
    """Draw the training loss beside the held-out losses of the model and of the trigram.

    Args:
        losses: columns `tokens` and `loss` (nats per token), one row a step.
        held_out: columns `predictor` and `nll` (nats per token), one horizontal line a row.
        output: the figure; .svg, .png and .csv are written.
    """
    use_style()
    smooth = losses["loss"].rolling(_SMOOTHING_STEPS, min_periods=1).mean()
    curve = pd.DataFrame({"series": "training", "tokens": losses["tokens"], "nll": smooth})
    lines = pd.DataFrame({"series": held_out["predictor"], "tokens": losses["tokens"].iloc[-1], "nll": held_out["nll"]})
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.6))
    axes.plot(curve["tokens"] / 1e6, curve["nll"], color=OKABE_ITO[0], label="training loss")
    for series, nll, color, dashes in zip(
        lines["series"], lines["nll"], OKABE_ITO[1:], ("--", ":", "-."), strict=False
    ):
        axes.axhline(nll, color=color, linestyle=dashes, label=f"{series}, held out: {nll:.2f}")
    axes.set(xlabel="training tokens (million)", ylabel="loss (nats per token)")
    axes.set_ylim(0.9 * min(curve["nll"].min(), lines["nll"].min()), None)
    axes.legend(frameon=False)
    basis_note(figure, f"measured; training loss: running mean of {_SMOOTHING_STEPS} steps", 0.05)
    save(figure, output, pd.concat([curve, lines], ignore_index=True))


def draw_expert_load(loads: pd.DataFrame, output: Path) -> None:
    """Draw the load of each expert as a multiple of its fair share.

    Args:
        loads: columns `layer`, `expert` and `share` (of the layer's tokens).
        output: the figure; .svg, .png and .csv are written.
    """
    use_style()
    experts = loads["expert"].nunique()
    table = loads.assign(fair_shares=loads["share"] * experts)
    grid = table.pivot(index="layer", columns="expert", values="fair_shares")
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 0.9 + 0.28 * len(grid)))
    mesh = heatmap(axes, grid, 2, (0.0, 2.0), "RdBu_r", 6)
    figure.colorbar(mesh, ax=axes, label="load / fair share")
    axes.set(xlabel="expert", ylabel="layer")
    basis_note(figure, "measured on held-out text", 0.05)
    save(figure, output, table)
