"""Which experts are quantised and which are resident: the orders and the two preferences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from lumoe.errors import UserError
from lumoe.moe.planning.plan import FULL_BITS, BoolArray, IntArray, Memory, Plan, Preference, _look_up


def random_order(layers: int, experts: int, seed: int) -> IntArray:
    """Return all `L·E` expert indices (row-major) in the random order of `seed`.

    The first `n` are quantised: a larger count contains every smaller one of the same seed, so that a change of count
    requantises only the difference.
    """
    return np.random.default_rng(seed).permutation(layers * experts)


def quantize_first(order: ArrayLike, count: int, shape: tuple[int, int], bits: int = 4) -> IntArray:
    """Return bits `[L, E]` with the first `count` experts of `order` at `bits` and the others at 16."""
    flat = np.asarray(order, dtype=np.int64)
    total = shape[0] * shape[1]
    if not 0 <= count <= total:
        raise UserError(f"plan: {count} experts cannot be quantised, the model has {total}")
    result = np.full(total, FULL_BITS, dtype=np.int64)
    result[flat[:count]] = bits
    return result.reshape(shape)


def fill(bits: IntArray, budget: int, bytes_of: Mapping[int, int], priority: ArrayLike | None = None) -> BoolArray:
    """Make experts resident until `budget` bytes are spent: small ones first, as the paper does.

    Within one precision the expert of higher `priority` (`[L, E]`, such as how often it is routed to) goes first, then
    experts are dealt out one a layer in turn, so that no layer is left bare.

    Returns:
        bool `[L, E]`.
    """
    layers, experts = bits.shape
    wanted = np.zeros(bits.shape) if priority is None else np.asarray(priority, dtype=float)
    layer, expert = np.divmod(np.arange(layers * experts), experts)
    order = np.lexsort((layer, expert, -wanted.ravel(), bits.ravel()))
    sizes = _look_up(bits, bytes_of).ravel()[order]
    resident = np.zeros(layers * experts, dtype=bool)
    # Sizes rise along the order, so what fits is a prefix of the running sum.
    resident[order] = np.cumsum(sizes) <= budget
    return resident.reshape(bits.shape)


def throughput_plan(
    budget: int,
    memory: Memory,
    shape: tuple[int, int],
    order: ArrayLike,
    bits: int = 4,
    priority: ArrayLike | None = None,
) -> Plan:
    """Plan for speed (arXiv 2407.14417): keep everything resident, spend what is left on precision.

    `Num_E16 = floor((budget − non_expert − L·E·S4) / (S16 − S4))`; when not even all quantised experts fit, all are
    quantised and as many as fit are resident.

    Args:
        order: the `L·E` expert indices in the order in which they give up precision.

    Raises:
        UserError: the budget does not hold the non-expert weights and the swap buffer, or `bits` save no memory.
    """
    small, full, total = memory.expert[bits], memory.expert[FULL_BITS], shape[0] * shape[1]
    if small >= full:
        raise UserError(
            f"plan: an expert at {bits} bits takes {small} bytes, at 16 bits {full}: quantising frees nothing"
        )
    spare = budget - memory.non_expert - total * small
    kept = min(total, max(0, spare // (full - small)))
    # What is kept was chosen to fit beside the others, so that all are resident unless none is kept.
    return quality_plan(budget, memory, shape, order, total - kept, bits, priority)


def quality_plan(
    budget: int,
    memory: Memory,
    shape: tuple[int, int],
    order: ArrayLike,
    count: int,
    bits: int = 4,
    priority: ArrayLike | None = None,
) -> Plan:
    """Plan for quality (arXiv 2407.14417): `count` experts are quantised, memory then buys residency.

    Raises:
        UserError: the budget does not hold the non-expert weights and the swap buffer.
    """
    chosen = quantize_first(order, count, shape, bits)
    return place(chosen, budget, memory, priority)


def place(bits: IntArray, budget: int, memory: Memory, priority: ArrayLike | None = None) -> Plan:
    """Return the plan with the given precisions and as many resident experts as `budget` holds.

    Raises:
        UserError: the budget does not hold the non-expert weights and the swap buffer.
    """
    everything = int(_look_up(bits, memory.expert).sum())
    if memory.non_expert + everything <= budget:
        return Plan(bits, np.ones(bits.shape, dtype=bool))
    left = budget - memory.non_expert - memory.buffer
    if left < 0:
        raise UserError(
            f"a budget of {budget} bytes is too small: weights outside the experts take {memory.non_expert} bytes and "
            f"the swap buffer {memory.buffer}; give at least {memory.non_expert + memory.buffer}"
        )
    return Plan(bits, fill(bits, left, memory.expert, priority))


def plan_for(
    budget_bytes: int,
    preference: Preference,
    memory: Memory,
    shape: tuple[int, int],
    order: ArrayLike,
    bits: int,
    priority: ArrayLike | None = None,
) -> Plan:
    """Return the plan of arXiv 2407.14417: speed quantises until all is resident, quality never quantises.

    Args:
        order: the `L·E` expert indices in the order in which they give up precision.
        bits: precision of quantised experts.
        priority: `[L, E]`, which experts become resident first, such as how often they are routed to.

    Raises:
        UserError: the budget does not hold the weights outside the experts and the swap buffers.
    """
    # In float32, the type of reference runs, quantised weights are expanded: quantising would buy nothing.
    if preference == "quality" or memory.expert[bits] >= memory.expert[FULL_BITS]:
        return quality_plan(budget_bytes, memory, shape, order, 0, bits, priority)
    return throughput_plan(budget_bytes, memory, shape, order, bits, priority)
