"""The two tiers as the store sees them: where experts rest, and the memory that they are brought into.

Without a GPU experts rest in files and are read past the page cache into RAM (`FileTier`); with one they rest in pinned
host memory and are copied into GPU memory (`device_tier.DeviceTier`). The store and the layers above it know neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.storage import Place

T = TypeVar("T")
Held = TypeVar("Held", bound="Buffer")
Stored_co = TypeVar("Stored_co", bound="Stored", covariant=True)
Stored_contra = TypeVar("Stored_contra", bound="Stored", contravariant=True)


class DroppedError(Exception):
    """A read ended early, for nobody wants the expert any more."""


def always_wanted() -> bool:
    """Say that a read is not dropped."""
    return False


class Buffer(Protocol):
    """Memory of the fast tier; it is given back when the last reference is dropped."""

    nbytes: int

    def tensors(self, record: Any, /) -> dict[str, torch.Tensor]:
        """Return views of the tensors that a record brings."""
        ...


class Stored(Protocol):
    """One expert on the slow tier: the bytes that it takes in the fast one, and the tensors among them."""

    @property
    def nbytes(self) -> int: ...

    @property
    def places(self) -> tuple[Place, ...]: ...


class Source(Protocol[Stored_co]):
    """All experts of a model on the slow tier, at every precision that there is."""

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits per weight that a plan may ask for."""
        ...

    @property
    def stored_as(self) -> str:
        """What 16 bits stand for where experts compute from a checkpoint's own codes, such as MXFP4; else empty."""
        ...

    def require(self, bits: Sequence[int]) -> None:
        """Raise UserError if experts at one of `bits` are not at hand."""
        ...

    def nbytes(self, bits: int) -> int:
        """Bytes of the fast tier that one expert at `bits` takes."""
        ...

    def kernel(self, bits: int) -> str:
        """Name of the arithmetic of experts at `bits`."""
        ...

    def record(self, layer: int, expert: int, bits: int) -> Stored_co:
        """Return where the expert rests, putting it there first if need be."""
        ...

    def build(self, layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> Expert:
        """Return the expert whose record was brought into `tensors`."""
        ...


class Tier(Protocol[Held, Stored_contra]):
    """Memory that experts compute from, and the way into it.

    Attributes:
        overlapped: reads run beside computation; else each begins when computation is done and ends before it goes on.
    """

    overlapped: bool

    def allocate(self, nbytes: int) -> Held:
        """Return memory for one expert."""
        ...

    def load(self, buffer: Held, record: Stored_contra, dropped: Callable[[], bool] = always_wanted) -> None:
        """Copy an expert into `buffer`; on return it is whole, and on any end nobody writes there any more.

        Called from a thread of `submit`.

        Args:
            dropped: whether the expert is no longer wanted; may be asked from time to time.

        Raises:
            DroppedError: it was not.
        """
        ...

    def submit(self, buffer: Held, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run `work`, which loads an expert into `buffer`, beside the caller; what was begun before may use it yet."""
        ...

    def in_place(
        self, layer: int, missing: Sequence[int], bits: Sequence[int], tokens: Sequence[int]
    ) -> Mapping[int, Expert]:
        """Return those of the missed experts that had better compute where they rest than be brought.

        Args:
            bits, tokens: of each of `missing`: its precision, and how many tokens it will be given.
        """
        ...

    def miss_cost(self, bits: int, nbytes: int) -> float:
        """Return what bringing an expert costs: seconds where they are known, else its bytes."""
        ...

    def finish(self) -> None:
        """Wait until all computation that was begun is done."""
        ...

    def reclaim(self) -> None:
        """Hand buffers that were given up back to the device."""
        ...
