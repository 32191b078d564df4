"""Convolution as analog products in the Winograd domain: Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, one product per tap.

The n² taps of F(m×m, r×r) are independent products over the input channels; each is a set of weight banks. After Bᵀ the
inputs are signed, so they drive differential pairs. A stride s splits into s² unit-stride convolutions (polyphase),
which act as more input channels. Lavin and Gray, CVPR 2016; the photonic form is that of arXiv 1906.10487.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lumoe.photonics.core.core import Core, Weights, hold
from lumoe.photonics.core.product import modulate_inputs, multiply
from lumoe.photonics.core.readout import Draw
from lumoe.photonics.core.transforms import matrices


@dataclass(frozen=True)
class Tiling:
    """How a square convolution becomes tiles.

    Attributes:
        m: outputs per tile side.
        kernel, stride, groups: of the convolution.
        points: which interpolation points, see :func:`lumoe.photonics.core.transforms.matrices`.
    """

    m: int
    kernel: int
    stride: int = 1
    groups: int = 1
    points: str = "standard"

    @property
    def phase_kernel(self) -> int:
        """r of the unit-stride convolutions: ⌈kernel/stride⌉."""
        return math.ceil(self.kernel / self.stride)

    @property
    def side(self) -> int:
        """n = m + r − 1."""
        return self.m + self.phase_kernel - 1

    def matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Aᵀ, G and Bᵀ in the type and on the device of `like`."""
        a, g, b = matrices(self.m, self.phase_kernel, self.points)
        return a.to(like), g.to(like), b.to(like)


def transform_weight(weight: Tensor, tiling: Tiling) -> Tensor:
    """Return the taps [n²·groups, K/groups, C/groups·s²] of a kernel [K, C/groups, r, r]."""
    outputs, inputs = weight.shape[:2]
    s, r = tiling.stride, tiling.phase_kernel
    grown = nn.functional.pad(weight, [0, r * s - tiling.kernel] * 2)
    phases = grown.reshape(outputs, inputs, r, s, r, s).permute(0, 1, 3, 5, 2, 4).reshape(outputs, -1, r, r)
    _, g, _ = tiling.matrices(weight)
    taps = torch.einsum("ia,kcae,je->ijkc", g, phases, g)
    return taps.reshape(tiling.side**2 * tiling.groups, outputs // tiling.groups, -1)


def transform_input(padded: Tensor, tiling: Tiling, height: int, width: int) -> Tensor:
    """Return the taps [n²·groups, C/groups·s², images·tiles] of padded images [B, C, H, W] with that output size."""
    images, channels = padded.shape[:2]
    s, r, m, n = tiling.stride, tiling.phase_kernel, tiling.m, tiling.side
    rows, columns = (math.ceil(size / m) * m + r - 1 for size in (height, width))
    fitted = nn.functional.pad(padded, [0, columns * s - padded.shape[3], 0, rows * s - padded.shape[2]])
    phases = fitted.reshape(images, channels, rows, s, columns, s).permute(0, 1, 3, 5, 2, 4)
    tiles = phases.reshape(images, -1, rows, columns).unfold(2, n, m).unfold(3, n, m)
    _, _, b = tiling.matrices(padded)
    taps = torch.einsum("ia,bcxyae,je->ijcbxy", b, tiles, b)
    return taps.reshape(n * n * tiling.groups, channels * s * s // tiling.groups, -1)


def inverse_transform(products: Tensor, tiling: Tiling, images: int, height: int, width: int) -> Tensor:
    """Return the outputs [B, K, height, width] of tap products [n²·groups, K/groups, images·tiles]."""
    m, n = tiling.m, tiling.side
    down, across = math.ceil(height / m), math.ceil(width / m)
    a, _, _ = tiling.matrices(products)
    taps = products.reshape(n, n, -1, images, down, across)
    tiles = torch.einsum("pi,ijkbxy,qj->bkxpyq", a, taps, a)
    return tiles.reshape(images, -1, down * m, across * m)[..., :height, :width]


def hold_taps(weight: Tensor, tiling: Tiling, core: Core) -> Weights:
    """Put the transformed kernel into weight banks."""
    return hold(transform_weight(weight.detach(), tiling), core)


@torch.no_grad()
def convolve(
    padded: Tensor,
    weights: Weights,
    tiling: Tiling,
    core: Core,
    size: tuple[int, int],
    draw: Draw,
) -> Tensor:
    """Return the analog convolution [B, K, height, width] of padded images [B, C, H, W]."""
    taps = transform_input(padded, tiling, *size)
    scale = core.scales(taps.abs().amax((1, 2)))
    light = modulate_inputs(taps, core, scale.reshape(-1, 1, 1))
    products, _ = multiply(weights, light, core, draw, input_scale=scale)
    return inverse_transform(products, tiling, padded.shape[0], *size)
