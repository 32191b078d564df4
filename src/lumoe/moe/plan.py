"""A plan: the precision and the place of every expert, and the two ways to choose them under a byte budget.

Pure functions on arrays. Counts of experts are `L·E` long orders or `[L, E]` arrays; memory is in bytes throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumoe.errors import UserError, nearest

FULL_BITS = 16
BITS = (2, 3, 4, 8, FULL_BITS)
Preference = Literal["throughput", "quality"]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def parse_preference(text: str) -> Preference:
    """Return the preference that `text` names.

    Raises:
        UserError: it names none.
    """
    if text not in get_args(Preference):
        raise UserError(f"preference '{text}' is unknown{nearest(text, get_args(Preference))}")
    return cast(Preference, text)


@dataclass(frozen=True)
class Plan:
    """Precision and residency of every expert.

    Attributes:
        bits: int `[L, E]`, bits per weight of expert `e` in layer `l`; 16 means not quantised.
        resident: bool `[L, E]`, whether the expert lies in the fast tier.
    """

    bits: IntArray
    resident: BoolArray

    def __post_init__(self) -> None:
        bits = np.array(self.bits, dtype=np.int64)
        resident = np.array(self.resident, dtype=bool)
        if bits.ndim != 2 or bits.shape != resident.shape:
            raise UserError(f"plan: bits {bits.shape} and resident {resident.shape} must both be [layers, experts]")
        unknown = sorted(set(np.unique(bits).tolist()) - set(BITS))
        if unknown:
            raise UserError(f"plan: {unknown[0]} bits per weight is not supported; known: {', '.join(map(str, BITS))}")
        bits.flags.writeable = resident.flags.writeable = False
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "resident", resident)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return np.array_equal(self.bits, other.bits) and np.array_equal(self.resident, other.resident)

    def __hash__(self) -> int:
        return hash((self.bits.tobytes(), self.resident.tobytes()))

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, experts per layer)."""
        layers, experts = self.bits.shape
        return layers, experts

    @property
    def quantized(self) -> BoolArray:
        """bool `[L, E]`: held at fewer than 16 bits."""
        return self.bits < FULL_BITS

    @property
    def quantized_experts(self) -> int:
        return int(self.quantized.sum())

    @property
    def resident_experts(self) -> int:
        return int(self.resident.sum())

    def expert_bytes(self, bytes_of: Mapping[int, int]) -> IntArray:
        """Bytes of every expert, int `[L, E]`; `bytes_of` maps bits per weight to the bytes of one expert."""
        return _look_up(self.bits, bytes_of)

    def bytes_resident(self, bytes_of: Mapping[int, int]) -> int:
        """Bytes that the resident experts take in the fast tier."""
        return int(self.expert_bytes(bytes_of)[self.resident].sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for JSON."""
        return {"bits": self.bits.tolist(), "resident": self.resident.tolist()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote.

        Raises:
            UserError: a field is missing or is not an `[L, E]` array.
        """
        try:
            bits, resident = np.array(value["bits"]), np.array(value["resident"])
            # A cast would make 4.5 bits 4, and the text "false" true.
            if bits.dtype.kind != "i" or resident.dtype.kind != "b":
                raise ValueError("bits are whole numbers, 'resident' is true or false")
            return cls(bits.astype(np.int64), resident)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"plan: 'bits' and 'resident' must be [layers, experts] arrays ({reason})") from None

    @classmethod
    def uniform(cls, layers: int, experts: int, bits: int = FULL_BITS, resident: bool = True) -> Plan:
        """Return the plan that treats every expert alike."""
        return cls(np.full((layers, experts), bits), np.full((layers, experts), resident))


@dataclass(frozen=True)
class Memory:
    """What the parts of a model take in the fast tier, in bytes.

    Attributes:
        expert: bits per weight -> bytes of one expert at that precision.
        non_expert: embeddings, attention, norms, routers and head; always resident, always 16 bits.
        buffer: swap buffer that missed experts pass through; needed unless every expert is resident.
    """

    expert: Mapping[int, int]
    non_expert: int
    buffer: int = 0

    def fast(self, plan: Plan) -> int:
        """Bytes in the fast tier: non-expert weights, resident experts and, unless all are resident, the buffer."""
        buffer = 0 if plan.resident.all() else self.buffer
        return self.non_expert + buffer + plan.bytes_resident(self.expert)


@dataclass(frozen=True)
class Change:
    """What a reconfiguration touches: bool `[L, E]` each."""

    requantize: BoolArray
    load: BoolArray
    evict: BoolArray


def difference(old: Plan, new: Plan) -> Change:
    """Return which experts a change of plan touches; all others stay as they are."""
    if old.shape != new.shape:
        raise UserError(f"plan: a model of shape {old.shape} cannot take a plan of shape {new.shape}")
    requantize = old.bits != new.bits
    return Change(
        requantize=requantize,
        load=new.resident & (~old.resident | requantize),
        evict=old.resident & (~new.resident | requantize),
    )


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


def _look_up(bits: IntArray, bytes_of: Mapping[int, int]) -> IntArray:
    present, where = np.unique(bits, return_inverse=True)
    missing = [value for value in present.tolist() if value not in bytes_of]
    if missing:
        raise UserError(f"plan: no weights at {missing[0]} bits; there are {', '.join(map(str, sorted(bytes_of)))}")
    sizes = np.array([bytes_of[value] for value in present.tolist()], dtype=np.int64)
    return sizes[where].reshape(bits.shape)
