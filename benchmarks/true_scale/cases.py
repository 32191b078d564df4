"""What is measured, the most telling first: schemes, points of memory, counts of quantised experts, routing, batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.true_scale.model import BITS
from lumoe.errors import UserError
from lumoe.moe.planning.placement import fill, place, quantize_first, random_order
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan

# paper: a random fixed choice of residents, one swap buffer, copies and computation in turn, no recorded graphs.
# overlap: the most used experts resident, copies beside computation, two swap buffers, recorded graphs.
# engine: overlap, and a missed 16-bit expert computes in host memory where measured times say that it is done earlier.
Scheme = Literal["paper", "overlap", "engine"]
SCHEMES: tuple[Scheme, ...] = ("paper", "overlap", "engine")
ALL, HALF = "all", "half"
TIMED = 16  # experts that `profile.time_misses` brings in, in turn


@dataclass(frozen=True)
class Case:
    """One row to measure.

    Attributes:
        point: a budget in bytes as text, `half` (half of the experts resident) or `all`.
    """

    scheme: Scheme
    routing: str
    batch: int
    point: str
    quantized_experts: int

    @property
    def swap_buffers(self) -> int:
        """Swap buffers of the scheme."""
        return 1 if self.scheme == "paper" else 2


def cases(
    budgets: Sequence[int],
    counts: Sequence[int],
    routings: Sequence[str],
    batches: Sequence[int],
    schemes: Sequence[Scheme] = SCHEMES,
) -> list[Case]:
    """Return all cases in order of interest.

    First the ends of the sweep, half and full residency, then the rest of it, all with the first routing and batch;
    larger batches and other routings at the ends, half and full residency.
    """
    ends = [*dict.fromkeys(map(str, (budgets[0], budgets[-1]))), HALF, ALL]
    middle = [str(budget) for budget in budgets if str(budget) not in ends]

    def block(points: Sequence[str], routing: str, batch: int) -> list[Case]:
        return [Case(scheme, routing, batch, p, count) for p in points for count in counts for scheme in schemes]

    found = block(ends, routings[0], batches[0]) + block(middle, routings[0], batches[0])
    for batch in batches[1:]:
        found += block(ends, routings[0], batch)
    for routing in routings[1:]:
        found += block(ends, routing, batches[0])
    return found


def plan_of(
    case: Case, shape: tuple[int, int], sizes: dict[int, int], non_expert: int, shares: NDArray[np.float64], seed: int
) -> tuple[Plan, int]:
    """Return the case's plan and its budget in bytes.

    Which experts are quantised is random, 4-bit ones become resident first (arXiv 2407.14417); within a precision the
    paper's scheme places at random, ours the most used first.

    Raises:
        UserError: the budget does not hold the weights outside the experts and the swap buffers.
    """
    bits = quantize_first(random_order(*shape, seed), case.quantized_experts, shape, BITS)
    priority = np.random.default_rng(seed + 1).random(shape) if case.scheme == "paper" else shares
    buffer = case.swap_buffers * max(sizes[int(value)] for value in np.unique(bits))
    everything = Plan(bits, np.ones(shape, dtype=bool))
    whole = non_expert + everything.bytes_resident(sizes)
    if case.point == ALL:
        return everything, whole
    if case.point == HALF:
        each = np.sort(everything.expert_bytes(sizes).ravel())
        room = int(each[: bits.size // 2].sum())
        return Plan(bits, fill(bits, room, sizes, priority)), non_expert + buffer + room
    budget = int(case.point)
    plan = place(bits, budget, Memory(sizes, non_expert, buffer), priority)
    return plan, min(budget, whole)


def left_out(case: Case, plan: Plan, budget: int, capacity: int) -> str | None:
    """Return why a case is not measured, or None.

    Args:
        capacity: bytes that the device has for weights.
    """
    if plan.resident.all() and case.point != ALL:
        return f"everything fits: the same as '{ALL}'"
    if budget > capacity:
        return f"needs {budget / 1e9:.1f} GB, the device has room for {capacity / 1e9:.1f} GB"
    return None


def copies(counts: Sequence[int], shape: tuple[int, int], seed: int) -> set[tuple[int, int, int]]:
    """Return the (layer, expert, bits) that plans with these counts ask for."""
    total = shape[0] * shape[1]
    if min(counts) < 0 or max(counts) > total:
        raise UserError(f"--count: the model has {total} experts")
    wanted = set()
    for count in counts:
        bits = quantize_first(random_order(*shape, seed), count, shape, BITS)
        wanted |= {(layer, expert, int(bits[layer, expert])) for layer, expert in np.ndindex(shape)}
    # Micro-benchmarks time the first experts at both precisions.
    timed = list(np.ndindex(shape))[:TIMED]
    return wanted | {(layer, expert, value) for layer, expert in timed for value in (BITS, FULL_BITS)}
