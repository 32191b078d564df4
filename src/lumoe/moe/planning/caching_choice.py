"""Which cache policy suits a model: hit rates found on its calibration text, and the best of them at a budget.

`lumoe moe residency --summary FILE` writes the rates. Each is of a policy that had learned from one half of the text
and was replayed on the other, so that no policy is judged on what it has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from lumoe.errors import UserError, about
from lumoe.files import read_csv
from lumoe.moe.planning.caching import CachePolicy, Caching, Scope
from lumoe.moe.planning.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "policy",
    "scope",
    "half_life",
    "prefetch",
    "resident_share",
    "layer",
    "hit_rate",
    "ready_rate",
    "read_ahead",
)
# What changes residents or reads ahead has to be better by this share than what is simpler.
LEAST_GAIN = 0.01
_STILL = Caching("static")
Floats = NDArray[np.float64]
Score = Callable[["Rates"], float]
"""What a policy is worth by its rates `[L]`; more is better."""


@dataclass(frozen=True, eq=False)
class Rates:
    """What a policy finds in each layer: `[L]`, or `[n, L]` for as many numbers of places.

    Attributes:
        hits: share of look-ups that find their expert resident.
        ready: resident or read ahead.
        ahead: experts read ahead for a token.
    """

    hits: Floats
    ready: Floats
    ahead: Floats

    @classmethod
    def none_ahead(cls, hits: Floats) -> Rates:
        """Return the rates of a policy that reads nothing ahead."""
        return cls(hits, hits, np.zeros_like(hits))

    @property
    def parts(self) -> tuple[Floats, Floats, Floats]:
        """The three of them, in order."""
        return self.hits, self.ready, self.ahead


@dataclass(frozen=True, eq=False)
class Recommendation:
    """A way to keep residents, and what it is expected to find.

    Attributes:
        rates: of each layer, `[L]`.
        fixed: share of a layer's look-ups that would hit if residents stayed, `[L]`.
    """

    caching: Caching
    rates: Rates
    fixed: Floats

    @property
    def changes(self) -> bool:
        """Whether residents change as they are used, or experts are read ahead."""
        return self.caching.policy != "static" or self.caching.prefetch > 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        caching = self.caching
        return {
            "policy": caching.policy,
            "scope": caching.scope,
            "half_life": caching.half_life if caching.policy == "lfru" else None,
            "prefetch": caching.prefetch,
            "predicted_hit_rate": float(self.rates.hits.mean()),
            "predicted_ready_rate": float(self.rates.ready.mean()),
            "predicted_hit_rate_static": float(self.fixed.mean()),
        }

    def __str__(self) -> str:
        caching = self.caching
        parts = [caching.policy + (" over the whole model" if caching.scope == "model" else "")]
        if caching.policy == "lfru":
            parts.append(f"half-life {caching.half_life:g}")
        if caching.prefetch:
            parts.append(f"{caching.prefetch} read ahead ({self.rates.ready.mean():.0%} are ready)")
        parts.append(f"hits {self.rates.hits.mean():.0%} on this model's calibration text")
        return ", ".join(parts) + (f", static {self.fixed.mean():.0%}" if caching.policy != "static" else "")


@dataclass(frozen=True, eq=False)
class HitRates:
    """What policies find by the share of experts that is resident.

    Attributes:
        shares: rising, `[n]`; the same for all policies.
        of: rates `[n, L]` of each policy; among them one that is static and reads nothing ahead.
    """

    shares: Floats
    of: Mapping[Caching, Rates]

    def at(self, caching: Caching, share: float) -> Rates:
        """Return the rates of each layer, `[L]`, with `share` of the experts resident; linear in between."""
        found = (
            np.array([np.interp(share, self.shares, layer) for layer in part.T]) for part in self.of[caching].parts
        )
        return Rates(*found)

    def usual(self) -> Caching:
        """Return the policy that hits most over all shares; of those about as good, the simplest. None reads ahead."""
        scores = {caching: _hits(rates) for caching, rates in self.of.items() if not caching.prefetch}
        return _best(scores)

    def under(self, caching: Caching) -> HitRates:
        """Return the rates of that policy, and of residents that stay, alone."""
        kept = {one: rates for one, rates in self.of.items() if one in (caching, _STILL)}
        return HitRates(self.shares, kept)

    def recommend(self, plan: Plan, score: Score | None = None) -> Recommendation:
        """Return the policy that is best with as many residents as `plan` has; of those about as good, the simplest.

        Precisions are not told apart: a policy moves experts of one precision among themselves.

        Args:
            score: by default the share of hits, and nothing is read ahead.

        Raises:
            UserError: the rates are of a model with another number of layers.
        """
        layers = next(iter(self.of.values())).hits.shape[1]
        if layers != plan.shape[0]:
            raise UserError(f"hit rates of a model of {layers} layers with experts; this one has {plan.shape[0]}")
        share = plan.resident_experts / plan.resident.size
        rates = {caching: self.at(caching, share) for caching in self.of if score is not None or not caching.prefetch}
        scores = {caching: _hits(found) if score is None else score(found) for caching, found in rates.items()}
        best = _best(scores)
        still = [found.hits for caching, found in rates.items() if caching.policy == "static" and not caching.prefetch]
        return Recommendation(best, rates[best], max(still, key=lambda hits: float(hits.mean())))


def _best(scores: Mapping[Caching, float]) -> Caching:
    """Return the policy of the highest score; of those about as good, the simplest."""
    enough = max(scores.values()) / (1 + LEAST_GAIN)
    good = [caching for caching, score in scores.items() if score >= enough]
    simplest = min(map(_effort, good))
    return max((caching for caching in good if _effort(caching) == simplest), key=scores.__getitem__)


def _hits(rates: Rates) -> float:
    return float(rates.hits.mean())


def _effort(caching: Caching) -> tuple[int, int]:
    """Return how much there is to a policy; of equals the scope is left to the score."""
    return caching.prefetch, get_args(CachePolicy).index(caching.policy)


def read_hit_rates(path: Path) -> HitRates:
    """Read what `lumoe moe residency --summary` wrote.

    Raises:
        UserError: the table is absent or damaged, or lacks a policy at some share.
    """
    table = read_csv(path, COLUMNS)
    with about(path):
        return hit_rates(table)


def hit_rates(table: pd.DataFrame) -> HitRates:
    """Return the rates of a table with COLUMNS.

    Raises:
        UserError: a policy is unknown, lacks a share or a layer that others have, or none is static.
    """
    shares, layers = np.unique(table["resident_share"].astype(float)), np.unique(table["layer"])
    of = {}
    lives = table.assign(half_life=table["half_life"].astype(float).fillna(Caching.half_life))
    for key, rows in lives.groupby(["policy", "scope", "half_life", "prefetch"], sort=False):
        policy, scope, half_life, prefetch = cast(tuple[CachePolicy, Scope, float, int], key)
        if policy not in get_args(CachePolicy) or scope not in get_args(Scope):
            raise UserError(f"there is no policy '{policy}' with scope '{scope}'")
        grids = [
            rows.pivot_table(index="resident_share", columns="layer", values=part).to_numpy(dtype=float)
            for part in ("hit_rate", "ready_rate", "read_ahead")
        ]
        whole = all(grid.shape == (len(shares), len(layers)) for grid in grids)
        if not whole or not all(((grid >= 0) & (grid <= 1)).all() for grid in grids[:2]) or (grids[2] < 0).any():
            raise UserError(f"rates of {policy} are not there, or out of range, for each share and layer")
        of[Caching(policy, scope, half_life, prefetch)] = Rates(*grids)
    if not any(caching.policy == "static" and not caching.prefetch for caching in of):
        raise UserError("no hit rates of residents that stay (static), to which others are compared")
    return HitRates(shares, of)
