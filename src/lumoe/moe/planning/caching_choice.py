"""Which cache policy suits a model: hit rates found on its calibration text, and the best of them at a budget.

`lumoe moe residency --summary FILE` writes the rates. Each is of a policy that had learned from one half of the text
and was replayed on the other, so that no policy is judged on what it has seen.
"""

from __future__ import annotations

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

COLUMNS = ("policy", "scope", "half_life", "resident_share", "layer", "hit_rate")
# What changes residents costs reads and locks: it has to find this much more than residents that stay.
LEAST_GAIN = 0.005
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """A way to keep residents, and what it is expected to find.

    Attributes:
        hits: `[L]`, share of a layer's look-ups that find their expert resident.
        fixed: the same for residents that stay.
    """

    caching: Caching
    hits: Floats
    fixed: Floats

    @property
    def changes(self) -> bool:
        """Whether residents change as they are used."""
        return self.caching.policy != "static"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        caching = self.caching
        return {
            "policy": caching.policy,
            "scope": caching.scope,
            "half_life": caching.half_life if caching.policy == "lfru" else None,
            "predicted_hit_rate": float(self.hits.mean()),
            "predicted_hit_rate_static": float(self.fixed.mean()),
        }

    def __str__(self) -> str:
        caching, found = self.caching, f"{self.hits.mean():.1%} of look-ups hit on this model's calibration text"
        if not self.changes:
            return f"static: {found}, no other policy more"
        life = f", half-life {caching.half_life:g}" if caching.policy == "lfru" else ""
        whole = " over the whole model" if caching.scope == "model" else ""
        return f"{caching.policy}{whole}{life}: {found}, static {self.fixed.mean():.1%}"


@dataclass(frozen=True, eq=False)
class HitRates:
    """Hit rates of policies by the share of experts that is resident.

    Attributes:
        shares: rising, `[n]`; the same for all policies.
        of: hit rates `[n, L]` of each policy; among them one that is static.
    """

    shares: Floats
    of: dict[Caching, Floats]

    def at(self, caching: Caching, share: float) -> Floats:
        """Return the hit rate of each layer, `[L]`, with `share` of the experts resident; linear in between."""
        rates = self.of[caching]
        return np.array([np.interp(share, self.shares, layer) for layer in rates.T])

    def recommend(self, plan: Plan) -> Recommendation:
        """Return the policy that finds most with as many residents as `plan` has; the static one where it is as good.

        Precisions are not told apart: a policy moves experts of one precision among themselves.

        Raises:
            UserError: the rates are of a model with another number of layers.
        """
        layers = next(iter(self.of.values())).shape[1]
        if layers != plan.shape[0]:
            raise UserError(f"hit rates of a model of {layers} layers with experts; this one has {plan.shape[0]}")
        share = plan.resident_experts / plan.resident.size
        found = {caching: self.at(caching, share) for caching in self.of}
        fixed, still = max(
            ((rates, caching) for caching, rates in found.items() if caching.policy == "static"),
            key=lambda pair: float(pair[0].mean()),
        )
        best = max(found, key=lambda caching: float(found[caching].mean()))
        if found[best].mean() < fixed.mean() + LEAST_GAIN:
            best = still
        return Recommendation(best, found[best], fixed)


def read_hit_rates(path: Path) -> HitRates:
    """Read what `lumoe moe residency --summary` wrote.

    Raises:
        UserError: the table is absent or damaged, or lacks a policy at some share.
    """
    table = read_csv(path, COLUMNS)
    with about(path):
        return hit_rates(table)


def hit_rates(table: pd.DataFrame) -> HitRates:
    """Return the hit rates of a table with COLUMNS.

    Raises:
        UserError: a policy is unknown, lacks a share or a layer that others have, or none is static.
    """
    shares, layers = np.unique(table["resident_share"].astype(float)), np.unique(table["layer"])
    of = {}
    lives = table.assign(half_life=table["half_life"].astype(float).fillna(Caching.half_life))
    for key, rows in lives.groupby(["policy", "scope", "half_life"], sort=False):
        policy, scope, half_life = cast(tuple[CachePolicy, Scope, float], key)
        if policy not in get_args(CachePolicy) or scope not in get_args(Scope):
            raise UserError(f"there is no policy '{policy}' with scope '{scope}'")
        grid = rows.pivot_table(index="resident_share", columns="layer", values="hit_rate").to_numpy(dtype=float)
        if grid.shape != (len(shares), len(layers)) or not ((grid >= 0) & (grid <= 1)).all():
            raise UserError(f"hit rates of {policy} are not there, or not in 0..1, for each share and layer")
        of[Caching(policy, scope, half_life)] = grid
    if not any(caching.policy == "static" for caching in of):
        raise UserError("no hit rates of residents that stay (static), to which others are compared")
    return HitRates(shares, of)
