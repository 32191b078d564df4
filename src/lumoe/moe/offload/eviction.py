"""Which residents make room for a missed expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumoe.moe.planning.plan import BoolArray, IntArray

At = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Experts as a choice of victims sees them, arrays `[L, E]`.

    Attributes:
        worth: what each is worth by byte.
        sizes: bytes of each.
        free: those that may be given up.
    """

    worth: NDArray[np.float64]
    sizes: IntArray
    free: BoolArray

    def victims(self, needed: int, most: float = np.inf) -> list[At] | None:
        """Return those of least worth that hold `needed` bytes together, none of them in vain; None if none do.

        Args:
            most: what a victim may be worth.
        """
        worth = np.where(self.free & (self.worth <= most), self.worth, np.inf)
        found: list[At] = []
        held = 0
        while held < needed:
            layer, expert = divmod(int(worth.argmin()), worth.shape[1])
            if worth[layer, expert] == np.inf:
                return None
            worth[layer, expert] = np.inf
            found.append((layer, expert))
            held += int(self.sizes[layer, expert])
        # A large one at the end may have made small ones before it needless: the worthiest of them stay.
        for at in reversed(found[:-1]):
            if held - int(self.sizes[at]) >= needed:
                held -= int(self.sizes[at])
                found.remove(at)
        return found


def without(free: BoolArray, layer: int, experts: Sequence[int]) -> BoolArray:
    """Return a copy of `free` in which `experts` of `layer` are not."""
    kept = free.copy()
    kept[layer, list(experts)] = False
    return kept
