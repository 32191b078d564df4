"""A plan: the precision and the place of every expert, and what it takes in memory; bytes throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

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
        return look_up(self.bits, bytes_of)

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
        swap_buffers: how many buffers there are instead, each as large as the plan's largest missed expert.
        kv_block: keys and values of KV_BLOCK tokens; 0 if not known.
        stored: codes of the model's files that experts "at 16 bits" are really computed from; empty for weights.
    """

    expert: Mapping[int, int]
    non_expert: int
    buffer: int = 0
    swap_buffers: int = 0
    kv_block: int = 0
    stored: str = ""

    def fast(self, plan: Plan) -> int:
        """Bytes in the fast tier: non-expert weights, resident experts and, unless all are resident, the buffer."""
        buffer = 0 if plan.resident.all() else self.swap(plan.bits[~plan.resident])
        return self.non_expert + buffer + plan.bytes_resident(self.expert)

    def swap(self, bits: IntArray) -> int:
        """Bytes that missed experts of the precisions `bits` pass through."""
        if not self.swap_buffers:
            return self.buffer
        return self.swap_buffers * max(self.expert[value] for value in np.unique(bits).tolist())

    @property
    def least(self) -> int:
        """Bytes that any plan fits in, whatever its precisions: nothing is resident but what is outside the experts."""
        return self.non_expert + (self.swap_buffers * max(self.expert.values()) if self.swap_buffers else self.buffer)


def look_up(bits: IntArray, bytes_of: Mapping[int, int]) -> IntArray:
    """Return the bytes of experts at `bits`, in its shape.

    Raises:
        UserError: there is no size for one of the precisions.
    """
    present, where = np.unique(bits, return_inverse=True)
    missing = [value for value in present.tolist() if value not in bytes_of]
    if missing:
        raise UserError(f"plan: no weights at {missing[0]} bits; there are {', '.join(map(str, sorted(bytes_of)))}")
    sizes = np.array([bytes_of[value] for value in present.tolist()], dtype=np.int64)
    return sizes[where].reshape(bits.shape)
