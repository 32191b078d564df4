"""How a layer is cut for Winograd: into unit-stride phases, and into the tile that it can use.

Strides are handled by splitting a convolution into s² unit-stride ones (polyphase), which act as more input channels.
Direct convolution (tile 1) is not cut: every tap of the kernel, square or not, is a point of its own.
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
    """Return the tile that each layer uses, [L, P]: `tile`, but 1 where direct convolution needs fewer products.

    That is the case for kernels of side 1, and for long thin ones, which a tile takes for squares of their longer side.
    """
    points = (tile + phase_kernel(shapes) - 1) ** 2
    saves = phases(shapes) * points <= shapes.taps * tile**2
    return np.where((phase_kernel(shapes) > 1) & saves, tile, DIRECT)


def fresh_direct_inputs(shapes: ConvolutionShapes) -> Array:
    """Return a channel's inputs that are new at each location of a direct convolution, averaged over a row, [L, 1].

    A row of locations starts with a whole window and then moves on by its stride. Where a dilated kernel skips pixels,
    its locations are gone through in as many interleaved rows as it takes to meet the same pixels again.
    """
    common = np.gcd(shapes.stride_width.astype(np.int64), shapes.dilation_width.astype(np.int64))
    starts = np.minimum(shapes.dilation_width / common, shapes.out_width)
    step = np.minimum(shapes.stride_width / common, shapes.kernel_width)
    read: Array = step * (shapes.out_width - starts) + shapes.kernel_width * starts
    return shapes.kernel_height * read / shapes.out_width


def check_tiles(shapes: ConvolutionShapes, tiles: list[int]) -> None:
    """Raise if a tile is impossible for one of the layers.

    Raises:
        UserError: the message names the layer.
    """
    sides = phase_kernel(shapes)
    for tile in tiles:
        used = np.broadcast_to(effective_tile(shapes, np.asarray(tile, dtype=float)), sides.shape)
        for name, m, r in zip(shapes.names, used[:, 0], sides[:, 0], strict=True):
            try:
                # A tile below 1 is refused for every layer, also where it would not be used.
                tile_points(int(m) if tile >= DIRECT else tile, int(r))
            except UserError as error:
                raise UserError(f"layer {name}: {error}") from None
