"""Which of torch's operations multiply matrices, and the layer that each of them is.

An operation is given by its name and arguments, as torch's dispatcher sees it: modules and functional calls look alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from lumoe.photonics.network.layers import Layer

# Where the factors of a product stand among the arguments.
_PRODUCTS = {
    "mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2),
    "addbmm": (1, 2), "_int_mm": (0, 1), "_scaled_mm": (0, 1),
}  # fmt: skip
_CONVOLUTIONS = ("convolution", "_convolution")
_ATTENTION = "_scaled_dot_product_"


def layers_of(
    operation: str, args: Sequence[Any], kwargs: Mapping[str, Any], is_computed: Callable[[Tensor], bool]
) -> list[Layer]:
    """Return the layers that an operation is, each named after what it does; none if it multiplies no matrices.

    Args:
        operation: without namespace and overload, such as `mm`.
        args, kwargs: its arguments.
        is_computed: whether a tensor depends on the network's input; the others are made of weights.
    """
    name = operation.removesuffix("_")
    if operation in _CONVOLUTIONS:
        return [_convolution(args, is_computed)]
    if name in _PRODUCTS:
        first, second = (args[index] for index in _PRODUCTS[name])
        return [_product(first, second, is_computed)]
    if operation.startswith(_ATTENTION) and not operation.endswith("backward"):
        return _attention(*args[:3])
    return []


def _convolution(args: Sequence[Any], is_computed: Callable[[Tensor], bool]) -> Layer:
    image, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    rewritten = is_computed(weight)
    batch, channels, *side = image.shape
    taps = list(weight.shape[2:])
    rank = len(side)
    if transposed:
        kernels = int(weight.shape[1]) * groups * prod(taps)
        positions = (prod(side), 1)
        return Layer(
            f"conv_transpose{rank}d", "transposed", channels, kernels, groups=groups, in_side=positions,
            out_side=positions, images=batch, rewritten=rewritten,
        )  # fmt: skip
    # A list of one number stands for all dimensions.
    stride, padding, dilation = (list(x) * (rank if len(x) == 1 else 1) for x in (stride, padding, dilation))
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(side, taps, stride, padding, dilation, strict=True)
    ]
    depth, slices = (taps[0], out[0]) if rank == 3 else (1, 1)
    return Layer(
        f"conv{rank}d", "conv", channels * depth, int(weight.shape[0]), _plane(taps, 1), _plane(stride, 1),
        _plane(padding, 0), _plane(dilation, 1), groups, _plane(side, 1), _plane(out, 1), batch * slices, rewritten,
    )  # fmt: skip


def _plane(sides: Sequence[int], missing: int) -> tuple[int, int]:
    """The last two sides; a single one is a width, beside a height of `missing`."""
    height, width = (missing, *sides)[-2:]
    return int(height), int(width)


def _product(first: Tensor, second: Tensor, is_computed: Callable[[Tensor], bool]) -> Layer:
    """The matrix product of [B, n, k] and [B, k, m], or of vectors: the factor that is made of weights is held."""
    shared = first.ndim < 3 or second.stride(0) == 0
    left, right = (list(map(int, tensor.shape)) for tensor in (first, second))
    if len(left) == 1:
        left.insert(0, 1)
    if len(right) == 1:
        right.append(1)
    matrices = left[0] if first.ndim == 3 else 1
    (rows, inner), columns = left[-2:], right[-1]
    if is_computed(second) and not is_computed(first):
        # A matrix of weights times columns of inputs is the transposed product.
        rows, columns, shared = columns, rows, first.ndim < 3 or first.stride(0) == 0
    rewritten = is_computed(first) and is_computed(second)
    if shared and not rewritten:
        rows, matrices = rows * matrices, 1
    positions = (rows, 1)
    return Layer(
        "product" if rewritten else "linear", "product" if rewritten else "linear", inner * matrices,
        columns * matrices, groups=matrices, in_side=positions, out_side=positions, rewritten=rewritten,
    )  # fmt: skip


def _attention(query: Tensor, key: Tensor, value: Tensor) -> list[Layer]:
    """Both products of attention that is one operation: queries with keys, and the result with values.

    Keys of fewer heads than queries have are held once for the heads that share them.
    """
    heads, held = prod(query.shape[:-2]), prod(key.shape[:-2])
    positions = (int(query.shape[-2]) * heads // held, 1)
    layers = []
    for inner, columns in ((query.shape[-1], key.shape[-2]), (key.shape[-2], value.shape[-1])):
        layers.append(
            Layer(
                "product", "product", inner * held, columns * held, groups=held, in_side=positions,
                out_side=positions, rewritten=True,
            )
        )  # fmt: skip
    return layers
