"""What quantising one expert alone does to the model's predictions, measured expert by expert."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from lumoe.moe.evaluation.perplexity import Window
from lumoe.moe.evaluation.quality import Replannable
from lumoe.moe.planning.plan import FULL_BITS, Plan
from lumoe.moe.planning.sensitivity import COLUMNS
from lumoe.progress import track


@torch.inference_mode()
def measure_costs(
    model: Replannable, windows: Sequence[Window], shape: tuple[int, int], precisions: Iterable[int]
) -> pd.DataFrame:
    """Return one row per expert and precision: its divergence in nats per token, with all others at 16 bits.

    Holds the reference's log-probabilities of all windows: `tokens · vocabulary` float32.
    """
    model.reconfigure(Plan.uniform(*shape))
    reference = [model.logits(window.inputs).float().log_softmax(-1) for window in windows]
    tokens = sum(len(window.inputs) for window in windows)
    rows = []
    for bits in precisions:
        for layer, expert in track(list(np.ndindex(*shape)), f"experts at {bits} bits"):
            precision = np.full(shape, FULL_BITS)
            precision[layer, expert] = bits
            model.reconfigure(Plan(precision, np.ones(shape, dtype=bool)))
            total = 0.0
            for window, expected in zip(windows, reference, strict=True):
                change = model.logits(window.inputs).float().log_softmax(-1) - expected
                # Σ p·(e^δ − 1 − δ): as Σ p·e^δ = 1 this is the divergence, and no term of it cancels another.
                total += float((expected.exp() * (torch.expm1(change) - change)).sum(-1).double().sum())
            rows.append((layer, expert, bits, total / tokens, tokens))
    return pd.DataFrame(rows, columns=list(COLUMNS))
