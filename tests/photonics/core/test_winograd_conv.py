from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lumoe.photonics.core.core import Core
from lumoe.photonics.core.layers import to_photonic
from lumoe.photonics.physics.parameters import load_physics

TILES = {"F2": (2, "standard"), "F4": (4, "standard"), "F4 better": (4, "better"), "F6": (6, "standard")}

# Output signal-to-noise ratios in dB, 64 input channels, ReLU-Gaussian inputs: computed independently of this code.
PER_TENSOR_8 = {"direct": 36.0, "F2": 31.7, "F4": -2.8, "F4 better": 9.8, "F6": -15.7}
PER_TAP = {
    8: {"F2": 33.8, "F4": 17.8, "F4 better": 21.8, "F6": 12.3},
    6: {"F2": 21.4, "F4": 5.6, "F4 better": 9.4, "F6": 0.0},
    4: {"F2": 8.7, "F4": -6.9, "F4 better": -3.7, "F6": -12.8},
}
NOISE_1E3 = {"F2": 46.3, "F4": 31.1, "F4 better": 33.8, "F6": 25.3}


def drawn(seed: int, images: int, side: int, padding: int) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    """A layer of 64 kernels and 64 channels, inputs, and the exact outputs."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(64, 64, 3, padding=padding, bias=False)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        inputs = torch.randn(images, 64, side, side, generator=generator).relu()
        return layer, inputs, layer(inputs)


@pytest.fixture(scope="module")
def reference() -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    return drawn(0, images=4, side=36, padding=1)


def ratio_db(reference, kind: str, channels: int = 64, **changes: object) -> float:
    layer, images, expected = reference
    tile, points = TILES.get(kind, (None, "standard"))
    core = Core(physics=load_physics("moderate"), channels=channels, **changes)  # type: ignore[arg-type]
    with torch.no_grad():
        error = to_photonic(layer, core, tile=tile, points=points)(images) - expected
    return float(10 * torch.log10(expected.pow(2).mean() / error.pow(2).mean()))


def noise_ratio_db(kind: str, channels: int = 64) -> float:
    """The median of four draws of one small image with noise of a thousandth of full scale.

    Full scale is the largest sample, and grows with how many there are: 1 dB from 9 thousand outputs to 300 thousand.
    """
    draws = [drawn(seed, images=1, side=14, padding=0) for seed in range(4)]
    return statistics.median(ratio_db(one, kind, channels, noise_floor=1e-3) for one in draws)


@pytest.mark.parametrize("kind", PER_TENSOR_8)
def test_ratio_with_one_scale_per_tensor(reference, kind: str) -> None:
    # A differential pair has a sign besides its magnitude bits: 7 of them make the 8 bits of a signed converter.
    got = ratio_db(reference, kind, weight_bits=8, input_bits=7, per_group=False)
    assert got == pytest.approx(PER_TENSOR_8[kind], abs=1.5)


@pytest.mark.parametrize("bits", PER_TAP)
@pytest.mark.parametrize("kind", TILES)
def test_ratio_with_a_scale_per_tap(reference, kind: str, bits: int) -> None:
    got = ratio_db(reference, kind, weight_bits=bits, input_bits=bits - 1)
    assert got == pytest.approx(PER_TAP[bits][kind], abs=1.5)


@pytest.mark.parametrize("kind", TILES)
def test_ratio_with_noise_of_a_thousandth_of_full_scale(kind: str) -> None:
    assert noise_ratio_db(kind) == pytest.approx(NOISE_1E3[kind], abs=1.5)


def test_ratio_of_direct_convolution_with_noise_of_a_thousandth_of_full_scale() -> None:
    # The reference, 48 to 50 dB, sums all 64·3·3 products of an output on one detector; ours widens it as above.
    at_once = noise_ratio_db("direct", channels=64 * 9)
    assert 48 - 1.5 <= at_once <= 50 + 1.5
    # Nine detectors of 64 products each share one full scale. Where the largest of all their samples lies, in units of
    # the root mean square, is farther out than for their sums, so noise in proportion to it is larger.
    assert at_once - 4 < noise_ratio_db("direct", channels=64) < at_once


@settings(max_examples=20)
@given(
    tile=st.sampled_from([2, 3, 4, 6]),
    kernel=st.integers(2, 3),
    padding=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
)
def test_unit_stride_is_exact(tile: int, kernel: int, padding: int, groups: int, height: int, width: int) -> None:
    layer = nn.Conv2d(4, 6, kernel, padding=padding, groups=groups).double()
    check_exact(layer, tile, torch.randn(2, 4, height, width, dtype=torch.float64))


@settings(max_examples=20)
@given(tile=st.sampled_from([2, 4]), kernel=st.integers(2, 11), stride=st.integers(2, 4), side=st.integers(11, 23))
def test_polyphase_strides_are_exact(tile: int, kernel: int, stride: int, side: int) -> None:
    if tile + -(-kernel // stride) - 1 > 8:
        tile = 2
    layer = nn.Conv2d(3, 4, kernel, stride=stride, padding=1).double()
    check_exact(layer, tile, torch.randn(1, 3, side, side, dtype=torch.float64))


def check_exact(layer: nn.Conv2d, tile: int, images: torch.Tensor) -> None:
    photonic = to_photonic(layer, Core.ideal(load_physics("moderate"), 5), tile=tile)
    expected = layer(images)
    torch.testing.assert_close(photonic(images), expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))


def test_kernels_of_side_one_and_dilated_ones_are_not_tiled() -> None:
    core = Core.ideal(load_physics("moderate"), 5)
    assert to_photonic(nn.Conv2d(3, 4, 1), core, tile=2).tiling is None
    assert to_photonic(nn.Conv2d(3, 4, 3, dilation=2), core, tile=2).tiling is None
    assert to_photonic(nn.Conv2d(3, 4, 3), core, tile=2).tiling is not None
