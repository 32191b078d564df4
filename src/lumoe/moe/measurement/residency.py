"""Which experts should be resident: policies replayed on recorded routing, as hit rates.

A trace is what the router chose, token by token and layer by layer; replaying it needs no model. Every policy holds the
same number of experts in each layer, so that they differ in choice alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.progress import track

POLICIES = ("random", "frequency", "lru", "oracle")
COLUMNS = ("corpus", "policy", "seed", "resident_share", "resident_experts", "hit_rate", "lookups", "basis")
Trace = NDArray[np.int64]


@torch.inference_mode()
def record_trace(engine: Engine, sequences: torch.Tensor) -> Trace:
    """Return the experts that each token of `sequences [S, T]` is routed to, int64 `[S·T, layers, k]`, in order."""
    parts: list[torch.Tensor] = []
    for sequence in sequences:
        chosen: list[torch.Tensor] = []
        engine.observe(lambda layer, experts, to=chosen: to.append(experts))  # type: ignore[misc]
        engine.logits(sequence)
        parts.append(torch.stack(chosen, dim=1))
    engine.observe(None)
    return torch.cat(parts).numpy()


def frequencies(trace: Trace, experts: int) -> NDArray[np.float64]:
    """Return how often a token is routed to each expert, `[L, E]`; rows sum to k."""
    tokens, layers, _ = trace.shape
    counts = np.stack([np.bincount(trace[:, layer].ravel(), minlength=experts) for layer in range(layers)])
    return np.asarray(counts / tokens)


def static_hit_rate(trace: Trace, resident: NDArray[np.bool_]) -> float:
    """Return the share of look-ups that find their expert among the fixed `resident [L, E]`."""
    layers = np.arange(trace.shape[1])[:, None]
    return float(resident[layers, trace].mean())


def lru_hit_rate(trace: Trace, slots: int, experts: int) -> float:
    """Return the hit rate when each layer keeps the `slots` experts it used last, as the store's `lru` policy does.

    A missed expert takes the place of the least recently used one that the token does not need itself; if all are
    needed it passes through a swap buffer.
    """
    tokens, layers, k = trace.shape
    hits = 0
    for layer in range(layers):
        used = np.full(experts, -1)
        resident = np.arange(experts) < slots
        for now, chosen in enumerate(trace[:, layer]):
            found = resident[chosen]
            hits += int(found.sum())
            used[chosen] = now
            for missed in chosen[~found]:
                spare = resident.copy()
                spare[chosen] = False
                if spare.any():
                    victim = np.flatnonzero(spare)[used[spare].argmin()]
                    resident[victim], resident[missed] = False, True
    return float(hits / (tokens * layers * k))


def most_used(usage: NDArray[np.float64], slots: int) -> NDArray[np.bool_]:
    """Return bool `[L, E]`: the `slots` most used experts of each layer."""
    order = np.argsort(-usage, axis=1, kind="stable")
    resident = np.zeros(usage.shape, dtype=bool)
    np.put_along_axis(resident, order[:, :slots], True, axis=1)
    return resident


def compare(
    trace: Trace, calibration: NDArray[np.float64], slots: Sequence[int], seeds: Sequence[int], corpus: str
) -> pd.DataFrame:
    """Return the hit rate of every policy and number of resident experts per layer.

    `random` draws its residents (the paper's static choice), `frequency` takes the experts used most on calibration
    text, `oracle` those used most in the trace itself (the best that a fixed choice can do), `lru` changes as it goes.

    Args:
        trace: held-out routing `[tokens, L, k]`.
        calibration: `[L, E]` frequencies on other text.

    Raises:
        UserError: more residents are asked for than a layer has experts.
    """
    layers, experts = calibration.shape
    if min(slots) < 0 or max(slots) > experts:
        raise UserError(f"a layer has {experts} experts: {max(slots)} of them cannot be resident")
    rows = []
    for count in track(slots, "numbers of resident experts"):
        found = {("frequency", 0): static_hit_rate(trace, most_used(calibration, count))}
        found["oracle", 0] = static_hit_rate(trace, most_used(frequencies(trace, experts), count))
        found["lru", 0] = lru_hit_rate(trace, count, experts)
        for seed in seeds:
            drawn = np.random.default_rng(seed).random((layers, experts))
            found["random", seed] = static_hit_rate(trace, most_used(drawn, count))
        for (policy, seed), rate in found.items():
            rows.append(
                {
                    "corpus": corpus,
                    "policy": policy,
                    "seed": seed,
                    "resident_share": count / experts,
                    "resident_experts": count * layers,
                    "hit_rate": rate,
                    "lookups": trace.size,
                    "basis": "measured",
                }
            )
    table = pd.DataFrame(rows)
    order = {policy: index for index, policy in enumerate(POLICIES)}
    return table.sort_values(
        ["policy", "seed", "resident_share"], key=lambda c: c.map(order) if c.name == "policy" else c
    )
