"""Cosines and sines of rotary positions (arXiv 2104.09864), scaled as a model's configuration says.

A layer turns pairs that lie half a head apart, over all of the head. Other layouts are brought to that one when
weights are read (`order`): neighbours that make a pair, and heads of which only a part is turned, whose rest stands
beside and is turned by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lumoe.moe.architectures.architecture import Rotary as Settings
from lumoe.moe.architectures.common import magnitude


class Rotary:
    """Tables of cosines and sines, made as positions are asked for."""

    def __init__(self, settings: Settings, width: int, dtype: torch.dtype) -> None:
        """Prepare for heads of `width` values."""
        self._settings, self._dtype, self._width = settings, dtype, width
        turned = settings.width or width
        # Sequences that outgrow the context of the first training have their own, with longrope alone.
        self._beyond = settings.original_context if settings.kind == "longrope" else None
        kinds = ("short", "long") if self._beyond else ("short",)
        self._tables = {kind: _Table(*frequencies(settings, turned, kind == "long"), width, dtype) for kind in kinds}

    def at(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and signed sine `[sequences, tokens, 1, width]` for positions `[sequences, tokens]`.

        Args:
            last: the largest of them.
        """
        cosine, sine = self._tables["short"].at(positions, last)
        if self._beyond is not None and last >= self._beyond:
            long = (positions[:, -1] >= self._beyond).view(-1, 1, 1, 1)
            further = self._tables["long"].at(positions, last)
            return torch.where(long, further[0], cosine), torch.where(long, further[1], sine)
        return cosine, sine


class _Table:
    def __init__(self, turned: torch.Tensor, factor: float, width: int, dtype: torch.dtype) -> None:
        still = width // 2 - len(turned)
        self._frequencies = torch.cat((turned, torch.zeros(still)))
        self._factors = torch.cat((torch.full_like(turned, factor), torch.ones(still)))
        self._dtype = dtype
        self._grow(256)

    def at(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        if last >= self._cosine.shape[0]:
            self._grow(2 * last)
        return self._cosine[positions].unsqueeze(2), self._sine[positions].unsqueeze(2)

    def _grow(self, length: int) -> None:
        angles = torch.outer(torch.arange(length).float(), self._frequencies)
        cosine, sine = angles.cos() * self._factors, angles.sin() * self._factors
        self._cosine = torch.cat((cosine, cosine), dim=-1).to(self._dtype)
        # Rotating by half a head negates the first half; the sign lies in the table.
        self._sine = torch.cat((-sine, sine), dim=-1).to(self._dtype)


def order(settings: Settings, width: int) -> torch.Tensor | None:
    """Return which value of a head comes at which place so that pairs lie half a head apart; None: they do."""
    turned = settings.width or width
    if turned == width and not settings.interleaved:
        return None
    first, second = torch.arange(turned // 2), torch.arange(turned // 2, turned)
    if settings.interleaved:
        first, second = torch.arange(0, turned, 2), torch.arange(1, turned, 2)
    middle = turned + (width - turned) // 2
    return torch.cat((first, torch.arange(turned, middle), second, torch.arange(middle, width)))


def frequencies(settings: Settings, width: int, beyond: bool = False) -> tuple[torch.Tensor, float]:
    """Return radians a position of each pair, float32 `[width / 2]`, and what cosine and sine are multiplied by.

    Formulas as in transformers' `modeling_rope_utils`, in its order of operations. "dynamic" changes nothing within
    the context that the model was made for, and no longer one is served.

    Args:
        beyond: of a sequence that outgrew the original context (longrope).
    """
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    numbers = settings.settings
    base = settings.base
    if settings.kind == "dynamic" and numbers.get("alpha"):
        base *= numbers["alpha"] ** (width / (width - 2))
    plain = 1.0 / base**exponents
    if settings.kind == "linear":
        return plain / numbers["factor"], 1.0
    if settings.kind == "yarn":
        return _yarn(settings, width, base**exponents)
    if settings.kind == "llama3":
        return _llama3(numbers, plain, settings.original_context), 1.0
    if settings.kind == "longrope":
        scale = torch.tensor(numbers["long_factor" if beyond else "short_factor"], dtype=torch.float32)
        mscale = numbers.get("long_mscale" if beyond else "short_mscale")
        factor = mscale if mscale is not None else numbers.get("attention_factor")
        if factor is None:
            stretch = numbers.get("factor", 1.0)
            factor = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(settings.original_context))
        return 1.0 / (scale * base**exponents), float(factor)
    return plain, 1.0


def _yarn(settings: Settings, width: int, periods: torch.Tensor) -> tuple[torch.Tensor, float]:
    """arXiv 2309.00071."""
    numbers, factor = settings.settings, settings.settings["factor"]
    attention = numbers.get("attention_factor")
    if attention is None:
        mscale, everywhere = numbers.get("mscale"), numbers.get("mscale_all_dim")
        attention = magnitude(factor)
        if mscale and everywhere:
            attention = magnitude(factor, mscale) / magnitude(factor, everywhere)

    def dimension(turns: float) -> float:
        return width * math.log(settings.original_context / (turns * 2 * math.pi)) / (2 * math.log(settings.base))

    low, high = dimension(numbers.get("beta_fast") or 32), dimension(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept, float(attention)


def _llama3(numbers: Mapping[str, Any], plain: torch.Tensor, original: int) -> torch.Tensor:
    low, high, factor = numbers["low_freq_factor"], numbers["high_freq_factor"], numbers["factor"]
    lengths = 2 * math.pi / plain
    smooth = (original / lengths - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(lengths > original / low, plain / factor, plain)
    medium = (lengths >= original / high) & (lengths <= original / low)
    return torch.where(medium, between, scaled)
