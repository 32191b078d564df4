"""Quality against precision: the perplexity of one model as more and more of its experts are quantised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from lumoe.errors import UserError
from lumoe.moe.evaluation.perplexity import (
    FloatArray,
    Scores,
    Window,
    increase_interval,
    perplexity_interval,
    resample,
    score,
)
from lumoe.moe.planning.plan import IntArray, Plan
from lumoe.progress import track

# `equivalent_experts`: the experts take as many bytes as with so many of them at `bits` and the others at 16.
KEYS = ["corpus", "method", "bits", "policy", "seed", "equivalent_experts"]
WINDOW_COLUMNS = (*KEYS, "quantized_experts", "expert_bytes", "window", "tokens", "nll")
COLUMNS = (
    *KEYS,
    "quantized_experts",
    "perplexity",
    "ci_low",
    "ci_high",
    "tokens",
    "increase",
    "increase_low",
    "increase_high",
    "expert_bytes",
    "basis",
)
COMPARISON_COLUMNS = (
    "corpus",
    "policy",
    "reference",
    "equivalent_experts",
    "increase",
    "increase_reference",
    "ratio",
    "ratio_low",
    "ratio_high",
    "basis",
)


class Replannable(Protocol):
    """A model that changes the precision of its experts in place."""

    def reconfigure(self, plan: Plan) -> object: ...

    def logits(self, tokens: Tensor) -> Tensor: ...


def score_plans(model: Replannable, windows: Sequence[Window], plans: Iterable[Plan]) -> list[Scores]:
    """Score the same windows under each plan in turn; the model is loaded once."""
    results = []
    for plan in track(plans, "choices of experts"):
        model.reconfigure(plan)
        results.append(score(model.logits, windows))
    return results


def window_table(scores: Scores, plan: Plan, bytes_of: Mapping[int, int], **labels: object) -> pd.DataFrame:
    """Return one row per window, with `labels` and what the plan's experts amount to."""
    return pd.DataFrame(
        {
            **labels,
            "quantized_experts": plan.quantized_experts,
            "expert_bytes": int(plan.expert_bytes(bytes_of).sum()),
            "window": np.arange(len(scores.nll)),
            "tokens": scores.tokens,
            "nll": scores.nll,
        }
    )


def score_table(
    model: Replannable,
    windows: Sequence[Window],
    plans: Mapping[int, Plan],
    bytes_of: Mapping[int, int],
    **labels: object,
) -> pd.DataFrame:
    """Return WINDOW_COLUMNS: every window under each plan.

    Args:
        plans: number of experts that would take as many bytes, all others at 16 bits -> plan.
        labels: columns that are the same in every row.
    """
    scored = zip(score_plans(model, windows, plans.values()), plans.items(), strict=True)
    tables = [window_table(one, plan, bytes_of, **labels, equivalent_experts=count) for one, (count, plan) in scored]
    return pd.concat(tables, ignore_index=True)


def summarise(windows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return perplexities and their increases over no expert quantised, with paired bootstrap intervals.

    Every corpus draws the same resamples of its windows for all of its rows, so that differences are paired.

    Args:
        windows: WINDOW_COLUMNS; for each corpus, method, policy and seed a count of 0 must be there to compare with.

    Raises:
        UserError: a run lacks its count of 0, or two runs of a corpus scored different windows.
    """
    rows = []
    for corpus, part in windows.groupby("corpus", sort=False):
        runs = {key: _in_order(run) for key, run in part.groupby(KEYS, sort=False)}
        tokens = next(iter(runs.values()))["tokens"].to_numpy()
        draws = resample(len(tokens), resamples, seed)
        for key, run in runs.items():
            labels = dict(zip(KEYS, key, strict=True))
            baseline = runs.get((*key[:-1], 0))
            if baseline is None:
                raise UserError(
                    f"corpus '{corpus}', policy {labels['policy']}, seed {labels['seed']}: add a count of 0"
                )
            if not np.array_equal(run["tokens"], tokens):
                raise UserError(f"corpus '{corpus}': runs scored different windows; measure them again together")
            nll, zero = run["nll"].to_numpy(), baseline["nll"].to_numpy()
            low, high = perplexity_interval(nll, tokens, draws)
            increase_low, increase_high = increase_interval(nll, zero, tokens, draws)
            rows.append(
                labels
                | {
                    "quantized_experts": run["quantized_experts"].iloc[0],
                    "perplexity": np.exp(nll.sum() / tokens.sum()),
                    "ci_low": low,
                    "ci_high": high,
                    "tokens": tokens.sum(),
                    "increase": np.exp((nll.sum() - zero.sum()) / tokens.sum()) - 1,
                    "increase_low": increase_low,
                    "increase_high": increase_high,
                    "expert_bytes": run["expert_bytes"].iloc[0],
                    "basis": "measured",
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compare_policies(windows: pd.DataFrame, resamples: int, seed: int, reference: str = "random") -> pd.DataFrame:
    """Return each policy's mean increase over that of `reference` at the same bytes, with its interval.

    Means are over seeds. A row for each corpus and one for `all`: the increase of the geometric mean perplexity. Every
    ratio is resampled with the same windows for both policies (paired), each corpus by itself.
    """
    logs: dict[tuple[str, int], dict[str, FloatArray]] = {}
    for index, (corpus, part) in enumerate(windows.groupby("corpus", sort=False)):
        count = int(part["window"].max()) + 1
        draws = np.vstack([np.ones((1, count), dtype=np.int64), resample(count, resamples, [seed, index])])
        tokens = draws @ part.groupby("window")["tokens"].first().to_numpy()
        for (policy, number), group in part.groupby(["policy", "equivalent_experts"], sort=False):
            if number:
                baseline = part[(part["policy"] == policy) & (part["equivalent_experts"] == 0)]
                found = [_log_increase(run, baseline, draws, tokens) for _, run in group.groupby("seed", sort=False)]
                logs.setdefault((str(policy), int(str(number))), {})[str(corpus)] = np.stack(found)
    rows = []
    for (policy, number), mine in logs.items():
        base = logs.get((reference, number))
        if policy == reference or base is None:
            continue
        for corpus in [*mine, "all"]:
            names = list(mine) if corpus == "all" else [corpus]
            increase, increase_base = (
                np.expm1(np.mean([by_corpus[name] for name in names], axis=0)).mean(axis=0)
                for by_corpus in (mine, base)
            )
            ratio = increase / increase_base
            low, high = np.nanquantile(ratio[1:], [0.025, 0.975])
            rows.append(
                {
                    "corpus": corpus,
                    "policy": policy,
                    "reference": reference,
                    "equivalent_experts": number,
                    "increase": increase[0],
                    "increase_reference": increase_base[0],
                    "ratio": ratio[0],
                    "ratio_low": low,
                    "ratio_high": high,
                    "basis": "measured",
                }
            )
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _log_increase(run: pd.DataFrame, baseline: pd.DataFrame, draws: IntArray, tokens: IntArray) -> FloatArray:
    """Return the increase of the mean negative log-likelihood, the true one first and then one per resample."""
    zero = baseline[baseline["seed"] == run["seed"].iloc[0]]
    difference = _in_order(run)["nll"].to_numpy() - _in_order(zero)["nll"].to_numpy()
    return np.asarray(draws @ difference / tokens, dtype=float)


def _in_order(run: pd.DataFrame) -> pd.DataFrame:
    return run.sort_values("window").reset_index(drop=True)
