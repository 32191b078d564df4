"""From a budget and a wish to a plan, with what it will give and why; the nearest plan where the wish is impossible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumoe.errors import UserError
from lumoe.moe.planning.caching_choice import HitRates, Rates, Recommendation
from lumoe.moe.planning.cost import CostModel, Prediction, Served
from lumoe.moe.planning.perplexities import nll_by_count
from lumoe.moe.planning.placement import PaperRules
from lumoe.moe.planning.plan import FULL_BITS, IntArray, Plan, Preference
from lumoe.moe.planning.shape import KV_BLOCK

if TYPE_CHECKING:
    import pandas as pd

Increase = Callable[[IntArray], float]
"""Precisions int `[L, E]` -> expected relative increase of the perplexity over 16 bits, NaN if unknown."""
# Speeds closer than this are one speed: what is then gained in quality is free.
_SAME_SPEED = 1e-6
# Numbers of quantised experts that are tried: all of them in a model of up to as many experts, else evenly spaced ones.
MOST_COUNTS = 256


@dataclass(frozen=True)
class Wish:
    """What is asked for; without limits the preference alone decides.

    Attributes:
        kv_bytes: of the budget, what is left free for keys and values.
    """

    budget_bytes: int
    preference: Preference
    min_tokens_per_s: float | None = None
    max_perplexity_increase: float | None = None
    kv_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """What weights may take."""
        return self.budget_bytes - self.kv_bytes


@dataclass(frozen=True)
class Proposal:
    """A plan, what it is expected to give, why it was chosen, and what it falls short of.

    Attributes:
        context_tokens: whose keys and values fit what the plan leaves of the budget; None if their size is not known.
        caching: how residents should change as they are used, and what the prediction rests on; None if not known.
    """

    plan: Plan
    prediction: Prediction | None
    bytes_fast: int
    increase: float
    why: str
    missing: Mapping[str, float]
    context_tokens: int | None = None
    caching: Recommendation | None = None

    @property
    def possible(self) -> bool:
        """Whether the wish is met."""
        return not self.missing

    def table(self) -> pd.DataFrame:
        """Return one row per expert: layer, expert, bits, resident."""
        import pandas as pd

        rows = pd.DataFrame(list(np.ndindex(self.plan.shape)), columns=["layer", "expert"])
        return rows.assign(bits=self.plan.bits.ravel(), resident=self.plan.resident.ravel())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; holds what `Plan.from_dict` reads."""
        predicted = self.prediction
        return {
            "quantized_experts": self.plan.quantized_experts,
            "resident_experts": self.plan.resident_experts,
            "bytes_fast": self.bytes_fast,
            "context_tokens": self.context_tokens,
            "predicted_tokens_per_s": predicted and predicted.tokens_per_s,
            "predicted_prefill_s": predicted and predicted.prefill_s,
            "predicted_decode_s": predicted and predicted.decode_s,
            "perplexity_increase": None if np.isnan(self.increase) else self.increase,
            "why": self.why,
            "missing": dict(self.missing),
            "residency": self.caching and self.caching.to_dict(),
            **self.plan.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Planner:
    """Everything that is known about a model on a machine.

    Attributes:
        rules: the model's sizes, and the order in which its experts give up precision.
        increase: what precisions cost in quality.
        costs: what plans cost in time; without it the paper's two rules decide, and nothing is predicted.
        basis: what `increase` rests on, or why it is not known, in words.
        hit_rates: what cache policies find on calibration text; without them residents stay as they are.
    """

    rules: PaperRules
    increase: Increase
    costs: CostModel | None = None
    basis: str = "not measured"
    hit_rates: HitRates | None = None

    @property
    def knows_quality(self) -> bool:
        """Whether it is known what quantising all experts costs in quality."""
        return not np.isnan(self.increase(np.full(self.rules.shape, self.rules.bits)))

    def candidates(self, budget_bytes: int) -> list[Plan]:
        """Return plans within the budget for rising numbers of quantised experts, from best quality to smallest.

        Raises:
            UserError: the budget does not hold the weights outside the experts and the swap buffer.
        """
        total = self.rules.shape[0] * self.rules.shape[1] if self.rules.saves else 0
        counts = np.unique(np.linspace(0, total, min(total, MOST_COUNTS) + 1).round().astype(int))
        return [self.rules.quality(budget_bytes, count) for count in counts.tolist()]

    def propose(self, wish: Wish) -> Proposal:
        """Return the best plan for `wish`, or the nearest one with the number that is missing.

        `throughput` takes the fastest plan whose increase is allowed, `quality` the one of least increase that is fast
        enough; of equals, the better one in the other respect.

        Raises:
            UserError: the budget does not hold the weights outside the experts and the swap buffer, or a limit is asked
                for without a cost model.
        """
        if self.costs is None:
            return self._by_rules(wish)
        plans = self.candidates(wish.weight_bytes)
        predictions = [self._predict(self.costs, plan) for plan in plans]
        speeds = np.array([prediction.tokens_per_s for prediction in predictions])
        increases = np.array([self.increase(plan.bits) for plan in plans])
        index, missing = choose(wish, speeds, increases)
        why = self._why(wish, plans[index], missing)
        return self._proposal(wish, plans[index], why, predictions[index], missing)

    def _caching(self, plan: Plan) -> Recommendation | None:
        """Return how the plan's residents should change; None if that is not known, or nothing is ever missed."""
        if self.hit_rates is None or plan.resident.all():
            return None
        costs = self.costs
        if costs is None:
            return self.hit_rates.recommend(plan)
        return self.hit_rates.recommend(plan, lambda rates: costs.predict(plan, _served(rates)).tokens_per_s)

    def _predict(self, costs: CostModel, plan: Plan) -> Prediction:
        caching = self._caching(plan)
        # Of residents that stay it is known which they are.
        return costs.predict(plan, _served(caching.rates) if caching is not None and caching.changes else None)

    def _by_rules(self, wish: Wish) -> Proposal:
        if wish.min_tokens_per_s is not None or wish.max_perplexity_increase is not None:
            raise UserError("limits on speed or perplexity need a profile of this machine: `lumoe moe calibrate`")
        plan = self.rules.plan(wish.weight_bytes, wish.preference)
        return self._proposal(wish, plan, self._why(wish, plan, {}), None, {})

    def _why(self, wish: Wish, plan: Plan, missing: Mapping[str, float]) -> str:
        if not missing and not self.rules.saves:
            return f"{self.rules.bits} bits save no memory, so no expert is quantised; memory buys residency"
        if missing or wish.preference != "quality" or self.knows_quality:
            return _why(wish, plan, missing)
        fewest = "no expert quantised"
        if wish.min_tokens_per_s is not None:
            fewest = f"{plan.quantized_experts} quantised, the fewest that reach {wish.min_tokens_per_s:g} tokens/s"
        return f"{fewest}, for what {self.rules.bits} bits cost in quality is not known; memory then buys residency"

    def _proposal(
        self, wish: Wish, plan: Plan, why: str, prediction: Prediction | None, missing: Mapping[str, float]
    ) -> Proposal:
        memory = self.rules.memory
        fast = memory.fast(plan)
        tokens = (wish.budget_bytes - fast) // memory.kv_block * KV_BLOCK if memory.kv_block else None
        return Proposal(plan, prediction, fast, self.increase(plan.bits), why, missing, tokens, self._caching(plan))


def _served(rates: Rates) -> Served:
    return Served(rates.ready, rates.ahead)


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


def _why(wish: Wish, plan: Plan, missing: Mapping[str, float]) -> str:
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
    if plan.resident.all():
        return f"{count} quantised experts let all be resident; other counts are slower or lose quality for no speed"
    return "not all experts fit even when quantised: small ones fill the memory"


def measured_increase(perplexities: pd.DataFrame, bits: int) -> Increase:
    """Return an increase that depends on the number of quantised experts, from rows of `perplexity.csv`.

    Its logarithm is linear between measured counts.

    Args:
        perplexities: columns PERPLEXITY_COLUMNS; for each corpus a count of 0.

    Raises:
        UserError: there are none at `bits`, or none of the model at 16 bits beside them.
    """
    counts, values = nll_by_count(perplexities, bits)
    if 0 not in counts:
        raise UserError(f"no perplexity of 0 quantised experts at {bits} bits, to which those of others are compared")

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
