"""Which experts to quantise: what each costs in quality, and the precisions that cost least within a byte budget.

An expert's cost at `b` bits is the mean Kullback-Leibler divergence, over the tokens of held-out text, from the 16-bit
model to the model in which this expert alone has `b` bits. It contains the quantisation error, how often and with
what weight the router chooses the expert, and how much what it writes matters to the output. To second order in the
error, costs of different experts add up, so the choice of precisions is a multiple-choice knapsack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumoe.errors import UserError
from lumoe.moe.planning.plan import FULL_BITS, IntArray

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("layer", "expert", "bits", "divergence", "tokens")


@dataclass(frozen=True)
class Choice:
    """Precisions `[L, E]`, what they cost together, and a proven lower bound on the cost of any choice in budget."""

    bits: IntArray
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the choice may be from the best, relative to its cost."""
        return (self.cost - self.bound) / self.cost if self.cost > 0 else 0.0


def cost_table(costs: pd.DataFrame, shape: tuple[int, int]) -> dict[int, NDArray[np.float64]]:
    """Return bits -> cost `[L, E]` from the rows of `divergence.measure_costs`; 16 bits cost nothing.

    Raises:
        UserError: an expert has no row at a precision at which another has one.
    """
    table = {FULL_BITS: np.zeros(shape)}
    for bits, rows in costs.groupby("bits"):
        cost = np.full(shape, np.nan)
        inside = (rows["layer"] < shape[0]) & (rows["expert"] < shape[1])
        if not inside.all():
            raise UserError(f"sensitivities name an expert that a model of {shape[0]} layers x {shape[1]} lacks")
        cost[rows["layer"], rows["expert"]] = rows["divergence"]
        if np.isnan(cost).any():
            layer, expert = np.argwhere(np.isnan(cost))[0]
            raise UserError(f"sensitivities lack layer {layer} expert {expert} at {bits} bits; measure them again")
        table[int(str(bits))] = cost
    return table


def cheapest_first(cost: ArrayLike) -> IntArray:
    """Return the `L·E` expert indices by rising cost `[L, E]`.

    Experts weigh the same, so quantising the first `n` is the best choice of `n` experts as far as costs add up.
    """
    return np.argsort(np.asarray(cost, dtype=float), axis=None, kind="stable")


def choose_bits(costs: Mapping[int, ArrayLike], bytes_of: Mapping[int, int], budget: int, gap: float = 1e-4) -> Choice:
    """Return the precisions of least total cost whose experts take at most `budget` bytes.

    An integer linear programme (HiGHS through scipy): one precision for every expert, one constraint on bytes.

    Args:
        costs: bits -> cost `[L, E]`.
        bytes_of: bits -> bytes of one expert.
        budget: bytes of all experts together.
        gap: relative distance from the proven bound at which to stop.

    Raises:
        UserError: even the smallest precisions exceed the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, kron

    bits = sorted(costs)
    cost = np.stack([np.asarray(costs[value], dtype=float) for value in bits])
    shape, total = cost.shape[1:], cost[0].size
    sizes = np.array([bytes_of[value] for value in bits], dtype=float)
    if sizes.min() * total > budget:
        raise UserError(
            f"a budget of {budget} bytes is too small: {total} experts at {bits[int(sizes.argmin())]} bits take "
            f"{int(sizes.min()) * total}"
        )
    flat = cost.reshape(len(bits), total).T.ravel()  # precision varies fastest
    scale = flat.max() if flat.max() > 0 else 1.0  # costs are tiny against the solver's tolerances
    one_each = kron(csr_array(np.eye(total)), csr_array(np.ones((1, len(bits)))), format="csr")
    result = milp(
        flat / scale,
        integrality=np.ones_like(flat),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(np.tile(sizes / sizes.max(), total)[None], 0, budget / sizes.max()),
        ],
        options={"mip_rel_gap": gap},
    )
    if result.x is None:
        raise UserError(f"no choice of precisions found within {budget} bytes: {result.message}")
    chosen = result.x.reshape(total, len(bits)).argmax(axis=1)
    return Choice(
        np.array(bits, dtype=np.int64)[chosen].reshape(shape),
        float(flat.reshape(total, len(bits))[np.arange(total), chosen].sum()),
        float(max(result.mip_dual_bound, 0.0) * scale),
    )
