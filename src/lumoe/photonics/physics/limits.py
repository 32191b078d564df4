"""Checks of physical arguments: one sentence that names the parameter, its value and its limits.

A value is a number, a numpy array or a tensor. Tensors bring their own methods, so that torch is not imported here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lumoe.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lumoe.photonics.devices import Number


def require_between(name: str, value: Number | Tensor, low: float, high: float, *, closed: bool = False) -> None:
    """Raise unless every element of `value` lies in (low, high), or in [low, high] where `closed`.

    Raises:
        UserError: (a ValueError) an element is NaN or outside; the message holds the first such element.
    """
    array = _array(value)
    inside = (array >= low) & (array <= high) if closed else (array > low) & (array < high)
    if not bool(inside.all()):
        brackets = "[]" if closed else "()"
        first = float(array[~inside].flatten()[0])
        raise UserError(f"{name} is {first:g}, but must lie in {brackets[0]}{low:g}, {high:g}{brackets[1]}")


def require_positive(name: str, value: Number | Tensor) -> None:
    """Raise unless every element of `value` is positive and finite."""
    require_between(name, value, 0.0, math.inf)


def require_not_negative(name: str, value: Number | Tensor) -> None:
    """Raise unless every element of `value` is zero or positive, and finite."""
    require_finite(name, value)
    require_between(name, value, 0.0, math.inf, closed=True)


def require_finite(name: str, value: Number | Tensor) -> None:
    """Raise if `value` holds a NaN or an infinity."""
    array = _array(value)
    with np.errstate(all="ignore"):
        total = float(array.sum())
    # The sum is finite only if every element is: one pass, no mask. It may overflow, so then look at each.
    if not math.isfinite(total) and not bool((finite := abs(array) < math.inf).all()):
        first = float(array[~finite].flatten()[0])
        raise UserError(f"{name} is {first:g}, but every element must be finite")


def require_count(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `low` and, where given, at most `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {value!r}, but must be a whole number {limit}")


def _array(value: Number | Tensor) -> Any:
    """The value as something that compares elementwise; a tensor without its graph."""
    return value.detach() if hasattr(value, "detach") else np.asarray(value)
