"""The exact Cook-Toom transforms of Winograd's F(m×m, r×r), and what they cost in additions and in noise.

Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A (Lavin and Gray, CVPR 2016); the matrices come from wincnn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import wincnn
from sympy import Matrix, Rational  # type: ignore[import-untyped]

from lumoe.errors import UserError

DIRECT = 1
# One of the points is infinity; these are the others, in the order in which larger tiles take them.
POINTS = (Rational(0), Rational(1), Rational(-1), Rational(2), Rational(-2), Rational(1, 2), Rational(-1, 2))
LARGEST_POINTS = len(POINTS) + 1


def tile_points(m: int, r: int) -> int:
    """Return n = m + r − 1, the points of F(m, r) along one side.

    Raises:
        UserError: the tile is impossible: m below one, or more points than are known to be usable.
    """
    if m < 1 or r < 1:
        raise UserError(f"tile {m} for kernel side {r}: both must be at least 1")
    n = m + r - 1
    if m > DIRECT and r > 1 and n > LARGEST_POINTS:
        largest = LARGEST_POINTS - r + 1
        advice = f"the largest is {largest}" if largest > 1 else "use 1, no Winograd"
        raise UserError(
            f"tile {m} is impossible for kernel side {r}: it needs {n} points of {LARGEST_POINTS}; {advice}"
        )
    return n


@lru_cache(maxsize=64)
def transforms(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return the exact A^T [m, n], G [n, r] and B^T [n, n] of F(m, r)."""
    n = tile_points(m, r)
    a_t, g, b_t, _ = wincnn.cookToomFilter(POINTS[: n - 1], m, r)
    return a_t, g, b_t


@lru_cache(maxsize=64)
def additions(m: int, r: int) -> tuple[int, int]:
    """Return the additions of one tile's input transform Bᵀ d B and of its inverse transform Aᵀ M A."""
    if m == DIRECT or r == 1:
        return 0, 0
    a_t, _, b_t = transforms(m, r)
    n = m + r - 1

    def per_vector(matrix: Matrix) -> int:
        return sum(max(sum(1 for x in matrix.row(i) if x != 0) - 1, 0) for i in range(matrix.rows))

    return per_vector(b_t) * 2 * n, per_vector(a_t) * (n + m)


@lru_cache(maxsize=64)
def noise_gain(m: int, r: int) -> float:
    """Return how many times the noise power of an output of F(m×m, r×r) is that of direct convolution; 1 for m = 1.

    Every product carries noise that is one share of its own full scale, as from a detector for each tap. Full scales
    are those of white kernels, G g Gᵀ, and of inputs behind a ReLU of white Gaussians, Bᵀ d B, for which
    E[d²] = σ²/2 and E[d d'] = σ²/2π. The inverse transform adds the taps in power: (A²)ᵀ (U V) (A²) / r², with the
    powers U of the kernel's taps and V of the input's; the mean over the m² outputs.
    """
    if m == DIRECT or r == 1:
        return 1.0
    a_t, g, b_t = (np.array(matrix.tolist(), dtype=float) for matrix in transforms(m, r))
    kernel, white, mean = (g**2).sum(axis=1), (b_t**2).sum(axis=1), b_t.sum(axis=1) ** 2
    common = 1 / np.pi
    powers = np.outer(kernel, kernel) * ((1 - common) * np.outer(white, white) + common * np.outer(mean, mean))
    return float((a_t**2 @ powers @ (a_t**2).T).mean()) / r**2
