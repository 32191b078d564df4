"""All configurations of (quantised x resident) experts, and which of them nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lumoe.moe.planning.cost import CostModel, tokens_per_second
from lumoe.moe.planning.perplexities import nll_by_count
from lumoe.moe.planning.placement import PaperRules
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan

Placement = Literal["quantized-first", "full-first", "proportional"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
COLUMNS = (
    "hardware",
    "placement",
    "quantized_experts",
    "resident_experts",
    "resident_quantized_experts",
    "bytes_fast",
    "predicted_tokens_per_s",
    "predicted_decode_tokens_per_s",
    "perplexity",
    "perplexity_basis",
)
ANCHOR_COLUMNS = (
    "anchor",
    "hardware",
    "budget_bytes",
    "preference",
    "quantized_experts",
    "published_tokens_per_s",
    "basis",
)


def resident_quantized(
    placement: Placement, quantized: ArrayLike, resident: ArrayLike, experts: int
) -> NDArray[np.int64]:
    """How many of `resident` experts are quantised ones when `quantized` of all `experts` are.

    `quantized-first` is the paper's rule; `proportional` is what a random choice gives on average (rounded).
    """
    q, r = np.asarray(quantized, dtype=np.int64), np.asarray(resident, dtype=np.int64)
    if placement == "quantized-first":
        near = np.minimum(q, r)
    elif placement == "full-first":
        near = np.maximum(0, r - (experts - q))
    else:
        near = np.rint(q * r / experts).astype(np.int64)
    return np.asarray(near)


def enumerate_configurations(
    costs: CostModel, memory: Memory, bits: int = 4, placements: Sequence[Placement] = PLACEMENTS
) -> pd.DataFrame:
    """Return one row per (placement, quantised, resident), `(L·E + 1)²` a placement, without `perplexity`.

    Balanced routing. A configuration keeps its swap buffer unless everything is resident.
    """
    total, workload = costs.shape.experts, costs.workload
    quantized, resident = (grid.ravel() for grid in np.meshgrid(*[np.arange(total + 1)] * 2, indexing="ij"))
    tables = []
    for placement in placements:
        near = resident_quantized(placement, quantized, resident, total)
        held = {bits: quantized, FULL_BITS: total - quantized}
        fast = {bits: near, FULL_BITS: resident - near}
        prefill, decode = (costs.count_step_seconds(tokens, held, fast) for tokens in (workload.prompt_tokens, 1))
        weights = near * memory.expert[bits] + (resident - near) * memory.expert[FULL_BITS]
        tables.append(
            pd.DataFrame(
                {
                    "hardware": costs.hardware.name,
                    "placement": placement,
                    "quantized_experts": quantized,
                    "resident_experts": resident,
                    "resident_quantized_experts": near,
                    "bytes_fast": memory.non_expert + weights + np.where(resident < total, memory.buffer, 0),
                    "predicted_tokens_per_s": tokens_per_second(prefill, decode, workload),
                    "predicted_decode_tokens_per_s": 1.0 / decode,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def with_perplexity(configurations: pd.DataFrame, measured: pd.DataFrame | None, bits: int = 4) -> pd.DataFrame:
    """Return `configurations` with `perplexity` and `perplexity_basis` (measured, interpolated or empty).

    Between measured counts the logarithm is interpolated linearly. Residency does not change the perplexity. Without
    measurements at `bits` both stay empty.

    Args:
        measured: rows of `perplexity.csv`.
    """
    result = configurations.assign(perplexity=np.nan, perplexity_basis="")
    if measured is None:
        return result
    counts, nll = nll_by_count(measured, bits)
    if not len(counts):
        return result
    wanted = configurations["quantized_experts"].to_numpy()
    values = np.interp(wanted, counts, nll, left=np.nan, right=np.nan)
    basis = np.where(np.isnan(values), "", np.where(np.isin(wanted, counts), "measured", "interpolated"))
    return result.assign(perplexity=np.exp(values), perplexity_basis=basis)


def undominated(benefit: ArrayLike, cost: ArrayLike) -> NDArray[np.bool_]:
    """Mark the Pareto frontier: no other point has at least the benefit at no more cost and betters one of them.

    Equal points are all marked. O(n log n).
    """
    gain, price = np.asarray(benefit, dtype=float), np.asarray(cost, dtype=float)
    order = np.lexsort((-gain, price))
    sorted_gain, sorted_price = gain[order], price[order]
    first = np.r_[True, sorted_price[1:] > sorted_price[:-1]]
    group = np.cumsum(first) - 1
    best_here = sorted_gain[first]
    best_before = np.r_[-np.inf, np.maximum.accumulate(best_here)[:-1]]
    keep = (sorted_gain == best_here[group]) & (sorted_gain > best_before[group])
    marked = np.zeros(len(gain), dtype=bool)
    marked[order] = keep
    return marked


def pareto(configurations: pd.DataFrame, budgets: Sequence[int]) -> pd.DataFrame:
    """Return the frontier of speed against quality within each budget.

    Quality is the perplexity where every configuration has one, else the number of quantised experts (fewer is
    better). Of configurations that are equally fast and equally good, the one that takes least memory stays.

    Args:
        budgets: bytes of the fast tier; each gives a frontier, marked in the column `budget_bytes`.
    """
    quality = "quantized_experts" if configurations["perplexity"].isna().any() else "perplexity"
    found = []
    for budget in budgets:
        fits = configurations[configurations["bytes_fast"] <= budget]
        keep = undominated(fits["predicted_tokens_per_s"], fits[quality])
        best = fits[keep].sort_values([quality, "bytes_fast", "placement"], kind="stable").drop_duplicates([quality])
        found.append(best.assign(budget_bytes=int(budget)))
    return pd.concat(found, ignore_index=True)


def sweep(
    costs: CostModel, memory: Memory, budgets: Sequence[int], counts: Sequence[int], bits: int = 4
) -> pd.DataFrame:
    """Return what the two preferences of arXiv 2407.14417 give at each budget: one row per budget and plan.

    Args:
        counts: numbers of quantised experts that are tried under the quality preference.

    Raises:
        UserError: a budget does not hold the weights outside the experts and the swap buffer.
    """
    rules = PaperRules(memory, costs.shape.plan_shape, np.arange(costs.shape.experts), bits)
    rows = []
    for budget in budgets:
        plans = [("throughput", rules.throughput(budget))]
        plans += [("quality", rules.quality(budget, count)) for count in counts]
        for preference, plan in plans:
            rows.append(
                {
                    "hardware": costs.hardware.name,
                    "budget_bytes": budget,
                    "preference": preference,
                    **_outcome(plan, costs, memory),
                }
            )
    return pd.DataFrame(rows)


def predict_anchors(published: pd.DataFrame, costs: CostModel, memory: Memory, bits: int = 4) -> pd.DataFrame:
    """Return the published speeds on this hardware with the prediction and its relative error beside each.

    Args:
        published: columns ANCHOR_COLUMNS; `quantized_experts` counts under the quality preference only.
    """
    rules = PaperRules(memory, costs.shape.plan_shape, np.arange(costs.shape.experts), bits)
    rows = []
    for row in published[published["hardware"] == costs.hardware.name].to_dict("records"):
        budget = int(row["budget_bytes"])
        if row["preference"] == "throughput":
            plan = rules.throughput(budget)
        else:
            plan = rules.quality(budget, int(row["quantized_experts"]))
        outcome = _outcome(plan, costs, memory)
        error = outcome["predicted_tokens_per_s"] / row["published_tokens_per_s"] - 1
        rows.append(dict(row) | outcome | {"relative_error": error})
    return pd.DataFrame(rows)


def _outcome(plan: Plan, costs: CostModel, memory: Memory) -> dict[str, int | float]:
    prediction = costs.predict(plan)
    return {
        "quantized_experts": plan.quantized_experts,
        "resident_experts": plan.resident_experts,
        "bytes_fast": memory.fast(plan),
        "predicted_prefill_s": prediction.prefill_s,
        "predicted_decode_s": prediction.decode_s,
        "predicted_tokens_per_s": prediction.tokens_per_s,
    }
