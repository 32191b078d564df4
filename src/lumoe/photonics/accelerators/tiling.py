"""How a layer is cut for Winograd: into unit-stride phases, and into the tile that it can use.

Strides are handled by splitting a convolution into s² unit-stride ones (polyphase), which act as more input channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lumoe.errors import UserError
from lumoe.photonics.cook_toom import DIRECT, tile_points
from lumoe.photonics.network.shapes import Array, ConvolutionShapes

# Larger than any kernel side: m·_CODE + r tells pairs apart.
_CODE = 1024


def per_tile(count: Callable[[int, int], float], m: Array, r: Array) -> Array:
    """Return `count(m, r)` of every layer and design, [L, P], calling it once for each pair that occurs."""
    m, r = np.broadcast_arrays(m, r)
    pairs, where = np.unique(m * _CODE + r, return_inverse=True)
    found = np.array([count(int(pair // _CODE), int(pair % _CODE)) for pair in pairs], dtype=float)
    return found[where.reshape(m.shape)]


def phase_kernel(shapes: ConvolutionShapes) -> Array:
    """Return the kernel side r that a tile sees after the polyphase split, ⌈m/s⌉, the longer if they differ, [L, 1]."""
    return np.maximum(
        np.ceil(shapes.kernel_height / shapes.stride_height), np.ceil(shapes.kernel_width / shapes.stride_width)
    )


def phases(shapes: ConvolutionShapes) -> Array:
    """Return into how many unit-stride convolutions a layer splits: s², or 1 where the kernel skips pixels, [L, 1]."""
    down = np.minimum(shapes.stride_height, shapes.kernel_height)
    return down * np.minimum(shapes.stride_width, shapes.kernel_width)


def effective_tile(shapes: ConvolutionShapes, tile: Array) -> Array:
    """Return the tile that each layer uses, [L, P]: `tile`, but 1 for kernels of side 1, where nothing is saved."""
    return np.where(phase_kernel(shapes) > 1, tile, DIRECT)


def check_tiles(shapes: ConvolutionShapes, tiles: list[int]) -> None:
    """Raise if a tile is impossible for one of the layers.

    Raises:
        UserError: the message names the layer.
    """
    for name, r in zip(shapes.names, phase_kernel(shapes)[:, 0], strict=True):
        for tile in tiles:
            try:
                tile_points(tile, int(r))
            except UserError as error:
                raise UserError(f"layer {name}: {error}") from None
