"""Converters between the digital and the analog world: quantisers that clip, and modulators that leak.

Rounding has no useful derivative, so gradients pass straight through it (Bengio et al., arXiv 1308.3432) and stop where
a converter clips.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lumoe.errors import UserError
from lumoe.photonics.physics.limits import require_between, require_not_negative

# log2(3), rounded down: what ternary weights are called.
_TERNARY_BITS = 1.58


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, lowest: float, highest: float) -> Tensor:
        codes = values / step
        ctx.save_for_backward((codes >= lowest - 0.5) & (codes <= highest + 0.5))
        return codes.round_().clamp_(lowest, highest).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def levels(bits: float, *, signed: bool) -> tuple[float, float]:
    """Return the lowest and the highest code: ±(2^(b−1) − 1) if signed, 0 to 2^b − 1 if not; b may be fractional.

    Raises:
        UserError: bits outside 1 to 24, or too few for the three codes that signed ones have at least.
    """
    require_between("bits", bits, 1.0, 24.0, closed=True)
    if signed and bits < _TERNARY_BITS:
        raise UserError(
            f"bits is {bits:g}, but signed codes are at least -1, 0 and 1: take {_TERNARY_BITS} bits or more"
        )
    highest = round(2.0 ** (bits - 1) - 1) if signed else round(2.0**bits - 1)
    return (-float(max(highest, 1)), float(max(highest, 1))) if signed else (0.0, float(highest))


def quantize(values: Tensor, *, bits: float, full_scale: Tensor | float, signed: bool = True) -> Tensor:
    """Return `values` as a converter of `bits` gives them: rounded to steps of full_scale/highest code, and clipped.

    Args:
        full_scale: the value of the highest code; broadcasts. Where it is 0, so is the result.
        signed: codes on both sides of 0, symmetric.
    """
    lowest, highest = levels(bits, signed=signed)
    scale = torch.as_tensor(full_scale, dtype=values.dtype, device=values.device)
    step = (scale / highest).clamp_min(torch.finfo(values.dtype).tiny)
    result: Tensor = _Quantize.apply(values, step, lowest, highest)  # type: ignore[no-untyped-call]
    return result


def leak_of_extinction(extinction_db: float) -> float:
    """Return the power ratio ε = 10^(−ER/10) that a modulator passes when it should pass none."""
    require_not_negative("extinction ratio", extinction_db)
    return float(10 ** (-extinction_db / 10))
