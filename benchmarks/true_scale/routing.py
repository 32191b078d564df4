"""Routing drawn from stated shares: how often a token is sent to each expert, and router logits that do it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lumoe.errors import UserError

FloatArray = NDArray[np.float64]
STEPS = 200


def shares_of(name: str, shape: tuple[int, int], top_k: int, seed: int) -> FloatArray:
    """Return the chance `[L, E]` that a token is sent to each expert; rows sum to k.

    `uniform` gives all experts the same; `zipf:S` gives the r-th most used of a layer a share proportional to 1/r^S,
    in an order drawn for each layer.

    Raises:
        UserError: the name is unknown, or a share would exceed one.
    """
    layers, experts = shape
    kind, _, exponent = name.partition(":")
    try:
        power = {"uniform": 0.0, "zipf": float(exponent or "nan")}[kind]
    except (KeyError, ValueError):
        raise UserError(f"routing '{name}' is unknown; give uniform or zipf:EXPONENT, such as zipf:0.5") from None
    weights = 1.0 / np.arange(1, experts + 1) ** power
    row = top_k * weights / weights.sum()
    if not row.max() < 1:
        raise UserError(f"routing '{name}': the first of {experts} experts would get more than every token")
    generator = np.random.default_rng(seed)
    return np.stack([row[generator.permutation(experts)] for _ in range(layers)])


def inclusion(chances: FloatArray) -> FloatArray:
    """Return how often each expert is among two drawn one after the other without return; `chances` sum to one."""
    odds = chances / (1 - chances)
    return chances * (1 + odds.sum(axis=-1, keepdims=True) - odds)


def first_choice(shares: FloatArray, top_k: int) -> FloatArray:
    """Return the chances of the first of `top_k` draws for which `shares` is how often each expert is drawn at all.

    Raises:
        UserError: k is neither 1 nor 2.
    """
    if top_k == 1:
        return shares
    if top_k != 2:
        raise UserError(f"routing can be drawn for 1 or 2 experts a token, not for {top_k}")
    chances = shares / top_k
    for _ in range(STEPS):
        chances = chances * shares / inclusion(chances)
        chances = chances / chances.sum(axis=-1, keepdims=True)
    return chances


class DrawnRouting:
    """Router logits whose top k follow stated shares: log-chances and Gumbel noise, from one seed a generation.

    The k largest of `log p + Gumbel` are k draws from `p` without return.
    """

    def __init__(self, shares: FloatArray, top_k: int, device: torch.device | None = None) -> None:
        self.shares, self.top_k, self._device = shares, top_k, device or torch.device("cpu")
        self._logs = np.log(first_choice(shares, top_k))
        self.chosen: list[NDArray[np.int64]] = []
        self._ready: list[torch.Tensor] = []

    def restart(self, seed: int | Sequence[int], steps: Sequence[int]) -> None:
        """Draw the logits of steps of so many tokens each, so that no drawing is timed.

        `chosen` then holds each step's experts, int `[L, tokens, k]`.
        """
        generator = np.random.default_rng(seed)
        layers, experts = self.shares.shape
        self.chosen, self._ready = [], []
        for tokens in steps:
            noise = generator.gumbel(size=(layers, tokens, experts)) + self._logs[:, None, :]
            logits = noise.astype(np.float32)
            self.chosen.append(np.argpartition(-logits, self.top_k - 1, axis=-1)[..., : self.top_k])
            self._ready.append(torch.from_numpy(logits).to(self._device))
        self._ready.reverse()

    def __call__(self, tokens: int) -> torch.Tensor:
        """Return the next step's logits, float32 `[L, tokens, E]` on the device.

        Raises:
            ValueError: no step of so many tokens was drawn.
        """
        logits = self._ready.pop()
        if logits.shape[1] != tokens:
            raise ValueError(f"a step of {tokens} tokens where one of {logits.shape[1]} was drawn")
        return logits

    def misses(self, resident: NDArray[np.bool_]) -> int:
        """Return how many fetches of the drawn steps find their expert not resident: one a step and expert."""
        count = 0
        for step in self.chosen:
            used = np.zeros(self.shares.shape, dtype=bool)
            np.put_along_axis(used, step.reshape(len(used), -1), True, axis=1)
            count += int((used & ~resident).sum())
        return count


def expected_misses(shares: FloatArray, resident: NDArray[np.bool_], steps: Sequence[int]) -> float:
    """Return the expected number of such fetches over steps of so many tokens each."""
    away = np.asarray(shares)[~resident]
    return float(sum((1 - (1 - away) ** tokens).sum() for tokens in steps))
