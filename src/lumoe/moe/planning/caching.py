"""What an expert in the fast tier is worth: the cache policies, as one number per expert.

A policy keeps the experts of the highest value. The store asks it which resident to give up for a miss, and a replay
asks the same object, so that a hit rate found on a trace is that of the engine. `lfru` is LRFU of Lee et al. ("LRFU: a
spectrum of policies that subsumes the least recently used and least frequently used policies", IEEE Trans. Computers
50(12), 2001): a use counts, and counts half as much after a half-life. A half-life far below one step is LRU, a
very long one is LFU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumoe.errors import UserError

CachePolicy = Literal["static", "lru", "lfru"]
Scope = Literal["layer", "model"]
"""Who competes for a place in the fast tier: the experts of one layer, or those of the whole model."""
# Values are rescaled before 2^exponent leaves float64's range.
_LARGEST_EXPONENT = 512.0


@dataclass(frozen=True)
class Caching:
    """How the fast tier changes while it is used.

    Attributes:
        policy: `static` keeps the plan's residents; `lru` and `lfru` let a missed expert take the place of the one of
            the least value.
        scope: whose places these are.
        half_life: steps after which a use counts half (`lfru`).
        prefetch: how many experts of the next layer are guessed and read ahead; 0 reads none.
    """

    policy: CachePolicy = "static"
    scope: Scope = "layer"
    half_life: float = 128.0
    prefetch: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("policy", self.policy, CachePolicy), ("cache scope", self.scope, Scope)):
            if value not in get_args(known):
                raise UserError(f"{name}: '{value}' is none; there are {', '.join(get_args(known))}")
        if not 0 < self.half_life < np.inf:
            raise UserError(f"half-life: {self.half_life:g} steps; it must be more than 0, and finite")
        if self.prefetch < 0:
            raise UserError(f"prefetch: {self.prefetch} experts; it must be at least 0")

    @classmethod
    def of(cls, policy: CachePolicy | Caching) -> Caching:
        """Return what a policy alone stands for; a `Caching` is itself.

        Raises:
            UserError: there is no such policy.
        """
        return policy if isinstance(policy, Caching) else cls(policy)

    def __str__(self) -> str:
        """What is in force, in words."""
        words: list[str] = [self.policy]
        if self.policy != "static":
            words.append("within each layer" if self.scope == "layer" else "over all layers")
        if self.policy == "lfru":
            words.append(f"half-life {self.half_life:g} steps")
        if self.prefetch:
            words.append(f"{self.prefetch} read ahead")
        return ", ".join(words)


class Values:
    """What each expert is worth to the fast tier, by its uses so far.

    Attributes:
        now: float `[L, E]`; larger is better kept. Only the order means something.
    """

    def __init__(self, caching: Caching, shape: tuple[int, int], frequencies: ArrayLike | None = None) -> None:
        """Start with nothing used yet.

        Args:
            frequencies: `[L, E]`, chance that a step uses an expert: what `lfru` starts from, as if it had gone on for
                long at these.
        """
        self.caching = caching
        self.now: NDArray[np.float64] = np.zeros(shape)
        self._step = 0
        self._weight = 1.0
        if frequencies is not None and caching.policy == "lfru":
            self.now += np.asarray(frequencies, dtype=float) / -np.expm1(-np.log(2.0) / caching.half_life)

    def step(self) -> None:
        """Begin a step (a forward pass): what is used from now on is that much newer."""
        self._step += 1
        if self.caching.policy == "lfru":
            # Newer uses weigh more, in place of older ones that weigh less: nothing but what is used need change.
            exponent = self._step / self.caching.half_life
            if exponent > _LARGEST_EXPONENT:
                self.now *= 2.0**-exponent
                self._step = 0
                exponent = 0.0
            self._weight = 2.0**exponent

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """Take note of a step's look-ups in a layer (distinct experts)."""
        if self.caching.policy == "lfru":
            self.now[layer, experts] += self._weight
        else:
            self.now[layer, experts] = self._step
