"""All configurations of (quantised x resident) experts, and which of them nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lumoe.moe.planning.cost import Workload, count_step_seconds, predict, tokens_per_second
from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.placement import quality_plan, throughput_plan
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan
from lumoe.moe.planning.shape import ModelShape

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
PERPLEXITY_COLUMNS = ("corpus", "bits", "quantized_experts", "perplexity")
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
    shape: ModelShape,
    memory: Memory,
    hardware: Hardware,
    workload: Workload,
    bits: int = 4,
    placements: Sequence[Placement] = PLACEMENTS,
) -> pd.DataFrame:
    """Return one row per (placement, quantised, resident), `(L·E + 1)²` a placement, without `perplexity`.

    Balanced routing. A configuration keeps its swap buffer unless everything is resident.
    """
    total = shape.experts
    quantized, resident = (grid.ravel() for grid in np.meshgrid(*[np.arange(total + 1)] * 2, indexing="ij"))
    tables = []
    for placement in placements:
        near = resident_quantized(placement, quantized, resident, total)
        held = {bits: quantized, FULL_BITS: total - quantized}
        fast = {bits: near, FULL_BITS: resident - near}
        prefill, decode = (
            count_step_seconds(hardware, shape, memory.expert, tokens, held, fast)
            for tokens in (workload.prompt_tokens, 1)
        )
        weights = near * memory.expert[bits] + (resident - near) * memory.expert[FULL_BITS]
        tables.append(
            pd.DataFrame(
                {
                    "hardware": hardware.name,
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

    A count's perplexity is the geometric mean over corpora and over which experts were quantised; between measured
    counts its logarithm is interpolated linearly. Residency does not change it. Without measurements both stay empty.

    Args:
        measured: rows of `perplexity.csv`.
    """
    result = configurations.assign(perplexity=np.nan, perplexity_basis="")
    if measured is None:
        return result
    measured = random_choices(measured)
    rows = measured[measured["bits"] == bits].assign(nll=lambda table: np.log(table["perplexity"]))
    nll = rows.groupby(["corpus", "quantized_experts"])["nll"].mean().groupby("quantized_experts").mean()
    counts = nll.index.to_numpy()
    wanted = configurations["quantized_experts"].to_numpy()
    values = np.interp(wanted, counts, nll.to_numpy(), left=np.nan, right=np.nan)
    basis = np.where(np.isnan(values), "", np.where(np.isin(wanted, counts), "measured", "interpolated"))
    return result.assign(perplexity=np.exp(values), perplexity_basis=basis)


def random_choices(measured: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose experts were chosen at random: a count says nothing about other choices."""
    return measured[measured["policy"] == "random"] if "policy" in measured else measured


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
    shape: ModelShape,
    memory: Memory,
    hardware: Hardware,
    workload: Workload,
    budgets: Sequence[int],
    counts: Sequence[int],
    bits: int = 4,
) -> pd.DataFrame:
    """Return what the two preferences of arXiv 2407.14417 give at each budget: one row per budget and plan.

    Args:
        counts: numbers of quantised experts that are tried under the quality preference.

    Raises:
        UserError: a budget does not hold the weights outside the experts and the swap buffer.
    """
    order = np.arange(shape.experts)
    rows = []
    for budget in budgets:
        plans = [("throughput", throughput_plan(budget, memory, shape.plan_shape, order, bits))]
        plans += [("quality", quality_plan(budget, memory, shape.plan_shape, order, count, bits)) for count in counts]
        for preference, plan in plans:
            rows.append(
                {
                    "hardware": hardware.name,
                    "budget_bytes": budget,
                    "preference": preference,
                    **_outcome(plan, shape, memory, hardware, workload),
                }
            )
    return pd.DataFrame(rows)


def predict_anchors(
    published: pd.DataFrame, shape: ModelShape, memory: Memory, hardware: Hardware, workload: Workload, bits: int = 4
) -> pd.DataFrame:
    """Return the published speeds on this hardware with the prediction and its relative error beside each.

    Args:
        published: columns ANCHOR_COLUMNS; `quantized_experts` counts under the quality preference only.
    """
    order = np.arange(shape.experts)
    rows = []
    for row in published[published["hardware"] == hardware.name].to_dict("records"):
        budget = int(row["budget_bytes"])
        if row["preference"] == "throughput":
            plan = throughput_plan(budget, memory, shape.plan_shape, order, bits)
        else:
            plan = quality_plan(budget, memory, shape.plan_shape, order, int(row["quantized_experts"]), bits)
        outcome = _outcome(plan, shape, memory, hardware, workload)
        error = outcome["predicted_tokens_per_s"] / row["published_tokens_per_s"] - 1
        rows.append(dict(row) | outcome | {"relative_error": error})
    return pd.DataFrame(rows)


def _outcome(
    plan: Plan, shape: ModelShape, memory: Memory, hardware: Hardware, workload: Workload
) -> dict[str, int | float]:
    prediction = predict(hardware, shape, plan, memory.expert, workload)
    return {
        "quantized_experts": plan.quantized_experts,
        "resident_experts": plan.resident_experts,
        "bytes_fast": memory.fast(plan),
        "predicted_prefill_s": prediction.prefill_s,
        "predicted_decode_s": prediction.decode_s,
        "predicted_tokens_per_s": prediction.tokens_per_s,
    }
