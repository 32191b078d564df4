"""Convolution shapes as columns of arrays, so that a closed form covers all layers and all designs at once.

Every layer with multiplications is a convolution here: a linear layer is a 1 x 1 convolution of its positions, and so
on; see `network.layers.Layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lumoe.photonics.network.layers import Layer

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ConvolutionShapes:
    """Counts of L convolutions, each an array [L, 1] that broadcasts against designs [P].

    `images` is how many images a layer convolves for each input of the network, with the same weights. `rewritten` is 1
    where the weights are computed from the input, so that no batch shares them, and 0 where they are the network's.
    """

    names: tuple[str, ...]
    in_channels: Array
    kernels: Array
    kernel_height: Array
    kernel_width: Array
    stride_height: Array
    stride_width: Array
    dilation_height: Array
    dilation_width: Array
    groups: Array
    in_height: Array
    in_width: Array
    out_height: Array
    out_width: Array
    images: Array
    rewritten: Array

    @property
    def locations(self) -> Array:
        """Kernel locations N_locations, of all images."""
        return self.images * self.out_height * self.out_width

    @property
    def taps(self) -> Array:
        """Positions of a kernel, m²."""
        return self.kernel_height * self.kernel_width

    @property
    def kernel_inputs(self) -> Array:
        """Inputs of one kernel, N_kernel = m² n_c of its group."""
        return self.window_inputs / self.groups

    @property
    def window_inputs(self) -> Array:
        """Inputs of all channels under a kernel at one location, m² n_c: those of one kernel in each group."""
        return self.taps * self.in_channels

    @property
    def weights(self) -> Array:
        """Weights that a layer's rings hold, K N_kernel."""
        return self.kernels * self.kernel_inputs

    def sharing(self, batch: float | Array) -> Array:
        """Return how many of `batch` inputs share one writing of the weights, [L, P]: 1 where they are rewritten."""
        return np.where(self.rewritten > 0, 1.0, np.asarray(batch, dtype=float))

    @property
    def inputs(self) -> Array:
        """Inputs of a layer, N_input = n² n_c."""
        return self.images * self.in_height * self.in_width * self.in_channels

    @property
    def outputs(self) -> Array:
        """Outputs of a layer."""
        return self.locations * self.kernels

    @property
    def macs(self) -> Array:
        """Multiply-accumulates of a layer, one input of the network."""
        return self.locations * self.weights


def convolution_shapes(layers: Sequence[Layer]) -> ConvolutionShapes:
    """Return the columns of layers with multiplications."""

    def column(values: Sequence[int]) -> Array:
        return np.asarray(values, dtype=np.float64)[:, None]

    return ConvolutionShapes(
        names=tuple(layer.name for layer in layers),
        in_channels=column([layer.in_channels for layer in layers]),
        kernels=column([layer.out_channels for layer in layers]),
        kernel_height=column([layer.kernel[0] for layer in layers]),
        kernel_width=column([layer.kernel[1] for layer in layers]),
        stride_height=column([layer.stride[0] for layer in layers]),
        stride_width=column([layer.stride[1] for layer in layers]),
        dilation_height=column([layer.dilation[0] for layer in layers]),
        dilation_width=column([layer.dilation[1] for layer in layers]),
        groups=column([layer.groups for layer in layers]),
        in_height=column([layer.in_side[0] for layer in layers]),
        in_width=column([layer.in_side[1] for layer in layers]),
        out_height=column([layer.out_side[0] for layer in layers]),
        out_width=column([layer.out_side[1] for layer in layers]),
        images=column([layer.images for layer in layers]),
        rewritten=column([int(layer.rewritten) for layer in layers]),
    )
