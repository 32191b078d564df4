"""Which experts are quantised and which are resident: the two ways to choose them under a byte budget.

Pure functions on arrays. Experts are `L·E` long orders or `[L, E]` arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lumoe.errors import UserError
from lumoe.moe.planning.plan import FULL_BITS, BoolArray, IntArray, Memory, Plan, Preference, look_up


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
    sizes = look_up(bits, bytes_of).ravel()[order]
    resident = np.zeros(layers * experts, dtype=bool)
    # Sizes rise along the order, so what fits is a prefix of the running sum.
    resident[order] = np.cumsum(sizes) <= budget
    return resident.reshape(bits.shape)


def place(bits: IntArray, budget: int, memory: Memory, priority: ArrayLike | None = None) -> Plan:
    """Return the plan with the given precisions and as many resident experts as `budget` holds.

    Raises:
        UserError: the budget does not hold the non-expert weights and the swap buffer.
    """
    everything = int(look_up(bits, memory.expert).sum())
    if memory.non_expert + everything <= budget:
        return Plan(bits, np.ones(bits.shape, dtype=bool))
    # Small experts become resident first, so one of the largest is missed.
    buffer = memory.swap(bits)
    left = budget - memory.non_expert - buffer
    if left < 0:
        raise UserError(
            f"a budget of {budget} bytes is too small: weights outside the experts take {memory.non_expert} bytes and "
            f"the swap buffer {buffer}; give at least {memory.non_expert + buffer}"
        )
    return Plan(bits, fill(bits, left, memory.expert, priority))


@dataclass(frozen=True, eq=False)
class PaperRules:
    """The two ways of arXiv 2407.14417 to spend a budget.

    Attributes:
        memory: what the parts of the model take.
        shape: (layers, experts per layer).
        order: the `L·E` expert indices in the order in which they give up precision.
        bits: precision of quantised experts.
        priority: `[L, E]`, which experts become resident first, such as how often they are routed to.
    """

    memory: Memory
    shape: tuple[int, int]
    order: ArrayLike
    bits: int = 4
    priority: ArrayLike | None = None

    @property
    def saves(self) -> bool:
        """Whether quantising frees memory; in float32, the type of reference runs, weights are expanded."""
        return self.memory.expert[self.bits] < self.memory.expert[FULL_BITS]

    def throughput(self, budget: int) -> Plan:
        """Plan for speed: keep everything resident, spend what is left on precision.

        `Num_E16 = floor((budget − non_expert − L·E·S4) / (S16 − S4))`; when not even all quantised experts fit, all are
        quantised and as many as fit are resident.

        Raises:
            UserError: the budget does not hold the non-expert weights and the swap buffer, or `bits` save no memory.
        """
        small, full = self.memory.expert[self.bits], self.memory.expert[FULL_BITS]
        if not self.saves:
            raise UserError(
                f"plan: an expert at {self.bits} bits takes {small} bytes, at 16 bits {full}: quantising frees nothing"
            )
        total = self.shape[0] * self.shape[1]
        spare = budget - self.memory.non_expert - total * small
        return self._placed(total - min(total, max(0, spare // (full - small))), budget)

    def quality(self, budget: int, count: int = 0) -> Plan:
        """Plan for quality: `count` experts are quantised, memory then buys residency.

        Raises:
            UserError: the budget does not hold the non-expert weights and the swap buffer.
        """
        return self._placed(count, budget)

    def plan(self, budget: int, preference: Preference) -> Plan:
        """Return the plan of either preference; where quantising frees nothing, nothing is quantised.

        Raises:
            UserError: the budget does not hold the weights outside the experts and the swap buffers.
        """
        return self.throughput(budget) if preference == "throughput" and self.saves else self.quality(budget)

    def _placed(self, count: int, budget: int) -> Plan:
        bits = quantize_first(self.order, count, self.shape, self.bits)
        return place(bits, budget, self.memory, self.priority)
