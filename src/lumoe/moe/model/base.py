"""What an engine needs of a decoder: `model.Decoder` on the CPU, `static_decoder.StaticDecoder` on a device."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from lumoe.moe.checkpoint.weights import Architecture
from lumoe.moe.model.moe_layer import Experts, Observer


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

    def attach(self, experts: Experts) -> None:
        """Take experts from `experts`."""
        ...

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` each layer's choices of experts from now on."""
        ...

    def cache(self, sequences: int, capacity: int) -> Any:
        """Return room for keys and values: an object with `lengths` and `capacity`."""
        ...

    def forward(self, tokens: torch.Tensor, cache: Any, slots: list[int], last_only: bool = False) -> torch.Tensor:
        """Run new tokens `[sequences, tokens]` of the cache's `slots`; return logits."""
        ...
