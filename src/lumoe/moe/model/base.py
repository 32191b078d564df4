"""What an engine needs of a decoder: `model.Decoder` on the CPU, `static_decoder.StaticDecoder` on a device."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.model.moe_layer import Experts, Observer
from lumoe.moe.planning.plan import FULL_BITS


class Cache(Protocol):
    """Keys and values of sequences in blocks, as `KVCache` has them; on a device all of them are there at once.

    Attributes:
        lengths: tokens stored of each sequence; may be set back, which keeps its blocks.
        tables: the blocks of each sequence, in order.
        capacity: tokens of a sequence at most.
        blocks: how many there are.
        limit: how many may be held at once.
    """

    lengths: list[int]
    tables: list[list[int]]
    capacity: int
    blocks: int
    limit: int

    @property
    def held(self) -> int:
        """Blocks that somebody has."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that somebody has."""
        ...

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        ...

    def missing(self, slot: int, tokens: int) -> int:
        """Return how many more blocks sequence `slot` needs for `tokens` tokens; at most 0: none."""
        ...

    def reserve(self, slot: int, tokens: int) -> None:
        """Let sequence `slot` have blocks for `tokens` tokens."""
        ...

    def clear(self, slot: int) -> None:
        """Forget sequence `slot`."""
        ...


class Decoding(Protocol):
    """The weights outside the experts, and the forward pass.

    Attributes:
        device: where it computes.
    """

    architecture: Architecture
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of the weights outside the experts."""
        ...

    def attach(self, experts: Experts | None) -> None:
        """Take experts from `experts`; None lets go of those that there are."""
        ...

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` each layer's choices of experts from now on."""
        ...

    def cache(self, sequences: int, capacity: int, bits: int = FULL_BITS) -> Cache:
        """Return room for keys and values at 16 or 8 bits."""
        ...

    def forward(self, tokens: torch.Tensor, cache: Any, slots: list[int], last_only: bool = False) -> torch.Tensor:
        """Run new tokens `[sequences, tokens]` of the cache's `slots`; return logits."""
        ...
