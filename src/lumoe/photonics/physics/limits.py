"""Checks of physical arguments: one sentence that names the parameter, its value and its limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lumoe.errors import UserError


def require_between(name: str, value: float | Tensor, low: float, high: float, *, closed: bool = False) -> None:
    """Raise unless every element of `value` lies in (low, high), or in [low, high] where `closed`.

    Raises:
        UserError: (a ValueError) an element is NaN or outside; the message holds the first such element.
    """
    tensor = torch.as_tensor(value).detach()
    inside = (tensor >= low) & (tensor <= high) if closed else (tensor > low) & (tensor < high)
    if not bool(inside.all()):
        brackets = "[]" if closed else "()"
        first = float(tensor[~inside].flatten()[0])
        raise UserError(f"{name} is {first:g}, but must lie in {brackets[0]}{low:g}, {high:g}{brackets[1]}")


def require_positive(name: str, value: float | Tensor) -> None:
    """Raise unless every element of `value` is positive and finite."""
    require_between(name, value, 0.0, math.inf)


def require_not_negative(name: str, value: float | Tensor) -> None:
    """Raise unless every element of `value` is zero or positive, and finite."""
    require_finite(name, value)
    require_between(name, value, 0.0, math.inf, closed=True)


def require_finite(name: str, value: float | Tensor) -> None:
    """Raise if `value` holds a NaN or an infinity."""
    tensor = torch.as_tensor(value).detach()
    # The sum is finite only if every element is: one pass, no mask. It may overflow, so then look at each.
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        first = float(tensor[~torch.isfinite(tensor)].flatten()[0])
        raise UserError(f"{name} is {first:g}, but every element must be finite")


def require_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `low` and, where given, at most `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {value!r}, but must be a whole number {limit}")
