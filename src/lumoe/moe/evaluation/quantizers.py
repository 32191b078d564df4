"""Quantisers side by side: perplexity, bytes and seconds of all experts at each method, precision and group size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lumoe.files import read_csv
from lumoe.moe.engine.engine import Engine
from lumoe.moe.evaluation.perplexity import Scores, Window, increase_interval, resample, score
from lumoe.moe.planning.plan import FULL_BITS, Plan
from lumoe.moe.quantization.folder import TABLE, QuantizedExperts
from lumoe.progress import track

COLUMNS = (
    "corpus",
    "method",
    "bits",
    "group_size",
    "perplexity",
    "increase",
    "increase_low",
    "increase_high",
    "output_error",
    "bytes",
    "bytes_full",
    "seconds",
    "rounded_experts",
    "tokens",
    "basis",
)


def compare_quantizers(
    model: str | Path,
    folders: Sequence[str | Path],
    windows: Mapping[str, Sequence[Window]],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Score every corpus with all experts from each folder, in float32, against the model as it is.

    Args:
        folders: finished quantisations of `model`.
        windows: corpus -> windows to score.

    Returns:
        COLUMNS, one row per corpus and folder; `seconds` is the time of quantising, `bytes` what codes, scales and
        zeros take, `rounded_experts` how many fell back to rounding.
    """
    full = Engine.load(model, dtype=torch.float32)
    baseline = {corpus: score(full.logits, part) for corpus, part in windows.items()}
    shape = full.decoder.architecture
    del full
    rows = []
    for folder in track(folders, "quantisers"):
        experts, table = QuantizedExperts(folder), read_csv(Path(folder) / TABLE)
        engine = Engine.load(model, folder, Plan.uniform(*shape.plan_shape, experts.bits), dtype=torch.float32)
        for corpus, part in windows.items():
            found, exact = score(engine.logits, part), baseline[corpus]
            low, high = increase_interval(found.nll, exact.nll, found.tokens, resample(len(part), resamples, seed))
            rows.append(
                {
                    "corpus": corpus,
                    "method": experts.method,
                    "bits": experts.bits,
                    "group_size": experts.group_size,
                    "perplexity": found.perplexity,
                    "increase": found.perplexity / exact.perplexity - 1,
                    "increase_low": low,
                    "increase_high": high,
                    "output_error": table["relative_error"].mean(),
                    "bytes": table["bytes"].sum(),
                    "bytes_full": 2 * shape.expert_parameters * shape.experts,
                    "seconds": table["seconds"].sum(),
                    "rounded_experts": int((table["method"] != experts.method).sum()),
                    "tokens": found.tokens.sum(),
                    "basis": "measured",
                }
            )
        del engine
    return pd.DataFrame([*(_baseline_row(c, s, rows) for c, s in baseline.items()), *rows])


def _baseline_row(corpus: str, scores: Scores, rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    size = rows[0]["bytes_full"] if rows else np.nan
    zeros = dict.fromkeys(("increase", "increase_low", "increase_high", "output_error", "seconds"), 0.0)
    return {
        "corpus": corpus,
        "method": "none",
        "bits": FULL_BITS,
        "group_size": 0,
        "perplexity": scores.perplexity,
        **zeros,
        "bytes": size,
        "bytes_full": size,
        "rounded_experts": 0,
        "tokens": scores.tokens.sum(),
        "basis": "measured",
    }
