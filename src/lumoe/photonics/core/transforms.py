"""Winograd transforms for numerical work: float matrices of the exact Cook-Toom ones, with a choice of points."""

from __future__ import annotations

from functools import lru_cache

import torch
import wincnn
from sympy import Rational  # type: ignore[import-untyped]
from torch import Tensor

from lumoe.errors import UserError
from lumoe.photonics import cook_toom as exact

# Points of F(4, 3) that spread less than 0, ±1, ±2: the last pair is replaced by ½ and −2.
_BETTER = (Rational(0), Rational(1), Rational(-1), Rational(1, 2), Rational(-2))


@lru_cache(maxsize=64)
def matrices(m: int, r: int, points: str = "standard") -> tuple[Tensor, Tensor, Tensor]:
    """Return Aᵀ [m, n], G [n, r] and Bᵀ [n, n] of F(m, r) in float64, n = m + r − 1.

    Args:
        points: ``standard`` (0, ±1, ±2, ±½, as many as it takes) or ``better`` (0, ±1, ½, −2 where five are needed).

    Raises:
        UserError: an impossible tile, or an unknown choice of points.
    """
    if points not in ("standard", "better"):
        raise UserError(f"points is '{points}', but must be 'standard' or 'better'")
    needed = exact.tile_points(m, r) - 1
    if points == "better" and needed == len(_BETTER):
        a_t, g, b_t, _ = wincnn.cookToomFilter(_BETTER, m, r)
    else:
        a_t, g, b_t = exact.transforms(m, r)
    a, b, c = (torch.tensor([[float(x) for x in q.row(i)] for i in range(q.rows)], dtype=torch.float64)
               for q in (a_t, g, b_t))  # fmt: skip
    return a, b, c
