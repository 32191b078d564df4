"""The fast tier's bytes: every buffer counts from before it is allocated until after it is freed."""

from __future__ import annotations

from threading import Lock
from typing import Any

from lumoe.moe.offload.tier import Buffer, Tier


class Ledger:
    """Allocates the fast tier's buffers and counts them. Any thread may call it.

    Attributes:
        limit: bytes that may be held.
        used: bytes that are.
    """

    def __init__(self, tier: Tier[Any, Any]) -> None:
        self._tier = tier
        self._lock = Lock()
        self.limit = self.used = 0

    def allocate(self, nbytes: int) -> Buffer:
        """Return a buffer of `nbytes`.

        Raises:
            RuntimeError: it would exceed the limit.
        """
        with self._lock:
            if self.used + nbytes > self.limit:
                raise RuntimeError(f"{nbytes} bytes more would exceed the budget of {self.limit}")
            self.used += nbytes
        buffer: Buffer = self._tier.allocate(nbytes)
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back; the caller holds the last reference and passes it on."""
        nbytes = buffer.nbytes
        del buffer
        with self._lock:
            self.used -= nbytes
