"""Perplexity of a text, and how sure one can be that one configuration is worse than another.

One scorer for every configuration, on the same token ids: disjoint windows of `length` tokens, each token predicted
once. A window sees the last token before it and nothing further back, as lm-eval's rolling windows do; GPTQ's
protocol differs in that it leaves each window's first token unscored. A window is the unit of resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lumoe.errors import UserError

FloatArray = NDArray[np.float64]
Logits = Callable[[Tensor], Tensor]
"""Token ids int64 `[T]` -> logits `[T, V]` of the token that follows each."""


@dataclass(frozen=True)
class Window:
    """Tokens the model reads, int64 `[T]`, and those it has to predict at the last positions, int64 `[S]`, S ≤ T."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihood in nats of each window, and how many tokens it is the sum over: both `[W]`."""

    nll: FloatArray
    tokens: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """exp(Σ nll / Σ tokens)."""
        return float(np.exp(self.nll.sum() / self.tokens.sum()))


def rolling_windows(tokens: Sequence[int], prefix: int, length: int) -> list[Window]:
    """Cut `tokens` into windows whose targets are disjoint and together are all of `tokens`.

    The first window reads `prefix` (the beginning-of-sequence token) first; the last one, if the tokens run out,
    reaches back to read `length` tokens and predicts only those that are left. These are the windows that lm-eval's
    `loglikelihood_rolling` scores with `max_length=length`.
    """
    stream = torch.tensor([prefix, *tokens], dtype=torch.int64)
    windows = []
    for start in range(0, len(tokens), length):
        end = min(start + length, len(tokens))
        windows.append(Window(stream[max(0, end - length) : end], stream[start + 1 : end + 1]))
    return windows


def whole_windows(tokens: Sequence[int], prefix: int, length: int, limit: int) -> list[Window]:
    """Return the first `limit` windows of exactly `length` targets; the tail is dropped.

    Raises:
        UserError: the text is shorter than one window.
    """
    count = min(len(tokens) // length, limit)
    if count == 0:
        raise UserError(
            f"the text has {len(tokens)} tokens, a window takes {length}: give more text or a shorter window"
        )
    return rolling_windows(tokens[: count * length], prefix, length)


@torch.inference_mode()
def score(logits: Logits, windows: Sequence[Window]) -> Scores:
    """Return the negative log-likelihood of every window's targets, summed in double precision.

    Raises:
        UserError: the model returned a value that is not a number.
    """
    totals = []
    for number, window in enumerate(windows):
        out = logits(window.inputs)[-len(window.targets) :].float()
        losses = torch.nn.functional.cross_entropy(out, window.targets.to(out.device), reduction="none")
        nll = losses.double().sum().item()
        if not np.isfinite(nll):
            raise UserError(f"the model's log-likelihood is {nll} in window {number}: its weights are damaged")
        totals.append(nll)
    return Scores(np.array(totals), np.array([len(window.targets) for window in windows], dtype=np.int64))


def resample(windows: int, count: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """Draw `count` bootstrap resamples: how often each of `windows` windows is drawn, int `[count, windows]`."""
    return np.random.default_rng(seed).multinomial(windows, np.full(windows, 1 / windows), size=count)


def perplexity_interval(
    nll: ArrayLike, tokens: ArrayLike, draws: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the perplexity.

    Args:
        nll, tokens: `[W]`; for several runs over the same windows, `[R, W]` for `nll` pools them.
        draws: `[B, W]` from `resample`.
    """
    return _interval(np.exp(_mean_nll(nll, tokens, draws)), level)


def increase_interval(
    nll: ArrayLike, baseline: ArrayLike, tokens: ArrayLike, draws: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Return the paired bootstrap interval of `perplexity / baseline perplexity − 1` over the same windows."""
    ratio = np.exp(_mean_nll(nll, tokens, draws) - _mean_nll(baseline, tokens, draws))
    return _interval(ratio - 1, level)


def _mean_nll(nll: ArrayLike, tokens: ArrayLike, draws: ArrayLike) -> FloatArray:
    runs = np.atleast_2d(np.asarray(nll, dtype=float))
    weights = np.asarray(draws, dtype=float)
    return np.asarray((weights @ runs.T).mean(axis=1) / (weights @ np.asarray(tokens, dtype=float)))


def _interval(values: FloatArray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
