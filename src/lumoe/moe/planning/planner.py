"""From a budget and a wish to a plan, with what it will give and why; the nearest plan where the wish is impossible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lumoe.moe.planning.cost import Prediction, Workload, predict
from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.placement import place
from lumoe.moe.planning.plan import FULL_BITS, IntArray, Memory, Plan, Preference
from lumoe.moe.planning.shape import ModelShape

Increase = Callable[[IntArray], float]
"""Precisions int `[L, E]` -> expected relative increase of the perplexity over 16 bits, NaN if unknown."""
# Speeds closer than this are one speed: what is then gained in quality is free.
_SAME_SPEED = 1e-6


@dataclass(frozen=True)
class Wish:
    """What is asked for; without limits the preference alone decides."""

    budget_bytes: int
    preference: Preference
    min_tokens_per_s: float | None = None
    max_perplexity_increase: float | None = None


@dataclass(frozen=True)
class Proposal:
    """A plan, what it is expected to give, why it was chosen, and what it falls short of."""

    plan: Plan
    prediction: Prediction
    bytes_fast: int
    increase: float
    why: str
    missing: Mapping[str, float]

    @property
    def possible(self) -> bool:
        """Whether the wish is met."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; holds what `Plan.from_dict` reads."""
        return {
            "quantized_experts": self.plan.quantized_experts,
            "resident_experts": self.plan.resident_experts,
            "bytes_fast": self.bytes_fast,
            "predicted_tokens_per_s": self.prediction.tokens_per_s,
            "predicted_prefill_s": self.prediction.prefill_s,
            "predicted_decode_s": self.prediction.decode_s,
            "perplexity_increase": None if np.isnan(self.increase) else self.increase,
            "why": self.why,
            "missing": dict(self.missing),
            **self.plan.to_dict(),
        }


@dataclass(frozen=True)
class Planner:
    """Everything that is known about a model on a machine.

    Attributes:
        precisions: the candidates, int `[L, E]` each, from best quality to smallest.
        frequencies: `[L, E]`, how often a token is routed to each expert; balanced if None.
        increase: what precisions cost in quality.
    """

    shape: ModelShape
    memory: Memory
    hardware: Hardware
    workload: Workload
    precisions: Sequence[IntArray]
    increase: Increase
    frequencies: ArrayLike | None = None

    def candidates(self, budget_bytes: int) -> list[Plan]:
        """Place every candidate's experts within the budget, small ones first, then those routed to most often.

        Raises:
            UserError: the budget does not hold the weights outside the experts and the swap buffer.
        """
        return [place(bits, budget_bytes, self.memory, self.frequencies) for bits in self.precisions]

    def propose(self, wish: Wish) -> Proposal:
        """Return the best plan for `wish`, or the nearest one with the number that is missing.

        `throughput` takes the fastest plan whose increase is allowed, `quality` the one of least increase that is fast
        enough; of equals, the better one in the other respect.

        Raises:
            UserError: the budget does not hold the weights outside the experts and the swap buffer.
        """
        plans = self.candidates(wish.budget_bytes)
        predictions = [
            predict(self.hardware, self.shape, plan, self.memory.expert, self.workload, self.frequencies)
            for plan in plans
        ]
        speeds = np.array([prediction.tokens_per_s for prediction in predictions])
        increases = np.array([self.increase(plan.bits) for plan in plans])
        index, missing = choose(wish, speeds, increases)
        plan = plans[index]
        return Proposal(
            plan,
            predictions[index],
            self.memory.fast(plan),
            float(increases[index]),
            _why(wish, plan, missing, all_resident=bool(plan.resident.all())),
            missing,
        )


def choose(wish: Wish, speeds: ArrayLike, increases: ArrayLike) -> tuple[int, dict[str, float]]:
    """Return which candidate answers `wish` and by how much it falls short of it (nothing if it does not).

    Args:
        speeds: predicted tokens per second of the candidates, from best quality to smallest.
        increases: their perplexity increases; NaN where unknown, which no limit on it accepts.
    """
    speed, increase = np.asarray(speeds, dtype=float), np.asarray(increases, dtype=float)
    # The order of the candidates stands for quality where it was not measured.
    worse = np.arange(len(speed), dtype=float) if np.isnan(increase).any() else increase
    least = -np.inf if wish.min_tokens_per_s is None else wish.min_tokens_per_s
    most = np.inf if wish.max_perplexity_increase is None else wish.max_perplexity_increase
    good = np.ones(len(speed), dtype=bool) if np.isinf(most) else increase <= most
    fast = speed >= least
    if not (good & fast).any():
        # Nearest: what is allowed in quality, as fast as it gets; failing that, what is best in quality.
        index = _fastest(speed, worse, good) if good.any() else int(np.argmin(worse))
        missing = {}
        if not fast[index]:
            missing["tokens_per_s"] = float(least - speed[index])
        if not good[index]:
            missing["perplexity_increase"] = float(increase[index] - most)
        return index, missing
    allowed = good & fast
    if wish.preference == "throughput":
        return _fastest(speed, worse, allowed), {}
    least_worse = allowed & (worse == worse[allowed].min())
    return _fastest(speed, worse, least_worse), {}


def _fastest(speed: NDArray[np.float64], worse: NDArray[np.float64], allowed: NDArray[np.bool_]) -> int:
    equal = allowed & (speed >= speed[allowed].max() * (1 - _SAME_SPEED))
    return int(np.flatnonzero(equal)[np.argmin(worse[equal])])


def _why(wish: Wish, plan: Plan, missing: Mapping[str, float], all_resident: bool) -> str:
    count = plan.quantized_experts
    if missing:
        parts = []
        if "tokens_per_s" in missing:
            limit = " with this limit on the perplexity" if wish.max_perplexity_increase is not None else ""
            parts.append(f"nothing in this budget is faster{limit}: {missing['tokens_per_s']:.4g} tokens/s are missing")
        if "perplexity_increase" in missing:
            excess = missing["perplexity_increase"]
            parts.append(
                "the perplexity of this model's configurations is not known"
                if np.isnan(excess)
                else f"no precision costs less quality: the increase exceeds the limit by {excess:.4%}"
            )
        return "; ".join(parts)
    if wish.preference == "quality":
        enough = "" if wish.min_tokens_per_s is None else f" that reaches {wish.min_tokens_per_s:g} tokens/s"
        return f"the least loss of quality{enough}: {count} quantised; memory then buys residency"
    if wish.max_perplexity_increase is not None:
        return f"the fastest with a perplexity increase of at most {wish.max_perplexity_increase:.2%}"
    if all_resident:
        return f"{count} quantised experts let all be resident; other counts are slower or lose quality for no speed"
    return "not all experts fit even when quantised: small ones fill the memory"


def measured_increase(perplexities: pd.DataFrame) -> Increase:
    """Return an increase that depends on the number of quantised experts, from rows of `perplexity.csv`.

    Geometric mean over corpora and choices of experts, its logarithm linear between measured counts.

    Args:
        perplexities: columns corpus, quantized_experts, perplexity; for each corpus a count of 0.
    """
    rows = perplexities.assign(nll=np.log(perplexities["perplexity"]))
    nll = rows.groupby(["corpus", "quantized_experts"])["nll"].mean().groupby("quantized_experts").mean()
    counts, values = nll.index.to_numpy(dtype=float), nll.to_numpy()

    def increase(bits: IntArray) -> float:
        count = int((bits < FULL_BITS).sum())
        return float(np.expm1(np.interp(count, counts, values - values[0], left=np.nan, right=np.nan)))

    return increase


def summed_increase(costs: Mapping[int, ArrayLike]) -> Increase:
    """Return the increase that adds up each expert's own cost in nats per token (see `lumoe.moe.planning.sensitivity`).

    Args:
        costs: bits -> cost `[L, E]`.
    """
    tables = {bits: np.asarray(cost, dtype=float) for bits, cost in costs.items()}

    def increase(bits: IntArray) -> float:
        total = 0.0
        for value in np.unique(bits).tolist():
            if value not in tables:
                return float("nan")
            total += float(tables[value][bits == value].sum())
        return float(np.expm1(total))

    return increase


def unknown_increase(bits: IntArray) -> float:
    """Nothing is known about the quality of quantised experts; not quantising costs nothing."""
    return 0.0 if (bits == FULL_BITS).all() else float("nan")
