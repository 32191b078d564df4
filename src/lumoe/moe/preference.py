"""The plan for a budget and a preference: what `lumoe serve` and `lumoe moe adapt` ask for at every change."""

from __future__ import annotations

from numpy.typing import ArrayLike

from lumoe.moe.plan import FULL_BITS, Memory, Plan, Preference, quality_plan, throughput_plan


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
