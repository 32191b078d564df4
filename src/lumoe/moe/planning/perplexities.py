"""Measured perplexities against the number of quantised experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

PERPLEXITY_COLUMNS = ("corpus", "bits", "quantized_experts", "perplexity")


def nll_by_count(measured: pd.DataFrame, bits: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the counts of quantised experts that were measured, rising, and the logarithm of the perplexity at each.

    It is the mean over corpora and over choices of experts: the perplexity's geometric mean. Only random choices count:
    a count says nothing about others.

    Args:
        measured: rows of `perplexity.csv`.
    """
    rows = measured[measured["bits"] == bits]
    rows = rows[rows["policy"] == "random"] if "policy" in rows else rows
    rows = rows.assign(nll=np.log(rows["perplexity"]))
    nll = rows.groupby(["corpus", "quantized_experts"])["nll"].mean().groupby("quantized_experts").mean()
    return nll.index.to_numpy(), nll.to_numpy()
