"""Convolution shapes as columns of arrays, so that a closed form covers all layers and all designs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lumoe.photonics.network.layers import Layer

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ConvolutionShapes:
    """Counts of L convolutions, each an array [L, 1] that broadcasts against designs [P]."""

    names: tuple[str, ...]
    in_channels: Array
    kernels: Array
    kernel_height: Array
    kernel_width: Array
    stride_height: Array
    stride_width: Array
    dilation: Array
    groups: Array
    in_height: Array
    in_width: Array
    out_height: Array
    out_width: Array

    @property
    def locations(self) -> Array:
        """Kernel locations N_locations."""
        return self.out_height * self.out_width

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
        """Weights of a layer, K N_kernel."""
        return self.kernels * self.kernel_inputs

    @property
    def inputs(self) -> Array:
        """Inputs of a layer, N_input = n² n_c."""
        return self.in_height * self.in_width * self.in_channels

    @property
    def outputs(self) -> Array:
        """Outputs of a layer."""
        return self.locations * self.kernels

    @property
    def macs(self) -> Array:
        """Multiply-accumulates of a layer, one image."""
        return self.locations * self.weights


def convolution_shapes(layers: Sequence[Layer]) -> ConvolutionShapes:
    """Return the columns of convolution layers."""

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
        dilation=column([layer.dilation[0] for layer in layers]),
        groups=column([layer.groups for layer in layers]),
        in_height=column([layer.in_side[0] for layer in layers]),
        in_width=column([layer.in_side[1] for layer in layers]),
        out_height=column([layer.out_side[0] for layer in layers]),
        out_width=column([layer.out_side[1] for layer in layers]),
    )
