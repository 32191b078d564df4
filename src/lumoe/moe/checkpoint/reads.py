"""Bytes that models cost to read, counted where files are read: what opening one takes, apart from the disk's speed."""

from __future__ import annotations

from threading import Lock


class Reads:
    """Bytes read by this process so far.

    Attributes:
        weights: of weights, those in a spill file that are read again among them.
        checked: of files that were held to the sums of a manifest.
    """

    def __init__(self) -> None:
        self.weights = self.checked = 0
        self._lock = Lock()

    def add(self, weights: int = 0, checked: int = 0) -> None:
        """Count bytes; any thread may."""
        with self._lock:
            self.weights += weights
            self.checked += checked


READS = Reads()
