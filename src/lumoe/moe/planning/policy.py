"""Precision policies: which experts give up precision, as plans that take equally many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from lumoe.errors import UserError, nearest
from lumoe.moe.planning.placement import quantize_first, random_order
from lumoe.moe.planning.plan import FULL_BITS, IntArray, Plan
from lumoe.moe.planning.sensitivity import cheapest_first, choose_bits, cost_table

PrecisionPolicy = Literal["random", "sensitivity", "mixed"]
POLICIES: tuple[PrecisionPolicy, ...] = get_args(PrecisionPolicy)


def plans_of(
    policy: str,
    shape: tuple[int, int],
    counts: Sequence[int],
    bits: int,
    bytes_of: Mapping[int, int],
    seed: int = 0,
    costs: pd.DataFrame | None = None,
) -> list[Plan]:
    """Return one all-resident plan per count; all policies spend the same bytes on a count.

    `random` (arXiv 2407.14417) and `sensitivity` hold `count` experts at `bits` and the others at 16, `mixed` chooses
    each expert's precision, out of all for which there are costs, within the bytes that this takes.

    Args:
        costs: rows of `divergence.measure_costs`; `random` needs none.

    Raises:
        UserError: the policy is unknown or its costs are missing.
    """
    if policy not in POLICIES:
        raise UserError(f"policy '{policy}' is unknown{nearest(policy, POLICIES)}")
    if policy == "random":
        order = random_order(*shape, seed)
        return [_resident(quantize_first(order, count, shape, bits)) for count in counts]
    if costs is None:
        raise UserError(f"policy '{policy}' needs sensitivities: measure them with `lumoe moe sensitivity`")
    table = cost_table(costs, shape)
    if bits not in table:
        raise UserError(f"sensitivities lack {bits} bits; measure them with `lumoe moe sensitivity --bits {bits}`")
    if policy == "sensitivity":
        order = cheapest_first(table[bits])
        return [_resident(quantize_first(order, count, shape, bits)) for count in counts]
    total = shape[0] * shape[1]
    budgets = [count * bytes_of[bits] + (total - count) * bytes_of[FULL_BITS] for count in counts]
    return [_resident(choose_bits(table, bytes_of, budget).bits) for budget in budgets]


def _resident(bits: IntArray) -> Plan:
    return Plan(bits, np.ones(bits.shape, dtype=bool))
