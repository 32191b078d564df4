"""Direct convolution and products of activations, against walks over every location, tap and weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lumoe.photonics.accelerators import pcnna, winograd
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import ACCELERATORS
from lumoe.photonics.accelerators.tiling import check_tiles, effective_tile
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.layers import Layer
from lumoe.photonics.network.shapes import convolution_shapes

MODERATE = load_devices("moderate").values() | {"channels": 2.0, "kernels": 3.0}
DIRECT = winograd.Design(tile=1.0)


def layer(kernel, stride, dilation, side, *, channels=4, kernels=6, groups=1, images=1) -> Layer:
    out = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(side, kernel, stride, dilation, strict=True)]
    return Layer("one", "conv", channels, kernels, kernel, stride, dilation=dilation, groups=groups, in_side=side,
                 out_side=(out[0], out[1]), images=images)  # fmt: skip


PAIR = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(kernel=PAIR, stride=PAIR, dilation=PAIR, groups=st.sampled_from([1, 2]), images=st.integers(1, 3))
def test_direct_convolution_makes_the_products_of_the_layer_and_no_more(kernel, stride, dilation, groups, images):
    one = layer(kernel, stride, dilation, (19, 23), channels=4, kernels=6, groups=groups, images=images)
    work = winograd.divide(convolution_shapes([one]), MODERATE, DIRECT)
    # 2 wavelengths divide the channels of a group, and 3 kernels its kernels: nothing is padded.
    made = work.tiles * work.passes * work.points * MODERATE["channels"] * MODERATE["kernels"]
    assert made.item() == one.macs
    assert winograd.utilisation(convolution_shapes([one]), MODERATE, DIRECT).item() == 1.0


@settings(max_examples=60, deadline=None)
@given(kernel=PAIR, stride=PAIR, dilation=PAIR)
def test_direct_convolution_reads_a_pixel_once_while_it_is_under_the_kernel(kernel, stride, dilation) -> None:
    one = layer(kernel, stride, dilation, (19, 23))
    columns = one.out_side[1]
    assume(columns >= 8)
    common = np.gcd(stride[1], dilation[1])
    # A row is gone through so that locations that share pixels follow one another.
    order = sorted(range(columns), key=lambda x: (x % (dilation[1] // common), x))
    read, held = 0, set()
    for x in order:
        window = {x * stride[1] + tap * dilation[1] for tap in range(kernel[1])}
        read += len(window - held)
        held = window
    work = winograd.divide(convolution_shapes([one]), MODERATE, DIRECT)
    assert work.fresh_inputs.item() == pytest.approx(kernel[0] * read / columns)


def test_a_tile_is_used_only_where_it_saves_products() -> None:
    sides = {"square": (3, 3), "thin": (1, 7), "point": (1, 1), "long": (1, 9)}
    shapes = convolution_shapes([layer(kernel, (1, 1), (1, 1), (20, 20)) for kernel in sides.values()])
    # F(2x2, 7x7) makes 64 / 4 products an output, the row of seven taps 7.
    assert effective_tile(shapes, np.asarray(2.0))[:, 0].tolist() == [2, 1, 1, 1]
    check_tiles(shapes, [2])


def test_a_depthwise_layer_uses_one_wavelength_and_one_kernel() -> None:
    one = convolution_shapes([layer((3, 3), (1, 1), (1, 1), (9, 9), channels=8, kernels=8, groups=8)])
    assert winograd.utilisation(one, MODERATE, DIRECT).item() == 1 / 6
    # 9 inputs in groups of 3 x 3 rows on banks of 4 wavelengths: three of four are lit.
    assert pcnna.utilisation(one, pcnna.Design(channels=4.0)).item() == 3 / 4


# Three heads: 5 queries of 8 numbers with 7 keys.
SCORES = {"in_channels": 24, "out_channels": 21, "groups": 3, "in_side": (5, 1), "out_side": (5, 1)}


@pytest.mark.parametrize("design", ACCELERATORS)
def test_factors_that_are_computed_are_written_for_every_input(design: str) -> None:
    held, computed = (
        convolution_shapes([Layer("x", kind, **SCORES, rewritten=kind == "product")]) for kind in ("linear", "product")
    )
    alone, batch = (DesignPoint.named(design, choices=[f"batch={n}"]) for n in (1, 10))
    for resource in ("settling", "weight_dacs", "dram"):
        if resource not in alone.evaluate(held).times_s:
            continue
        one, shared, each = (
            x.times_s[resource].item() for x in (alone.evaluate(held), batch.evaluate(held), batch.evaluate(computed))
        )
        assert each == one
        # Inputs and outputs go through DRAM for each image, whatever the batch.
        assert one / 10 < shared <= one if resource == "dram" else shared == pytest.approx(one / 10)
    assert batch.evaluate(computed).total_energy_j > batch.evaluate(held).total_energy_j


def test_what_is_computed_is_written_even_where_the_weights_rest_on_the_chip() -> None:
    chip = winograd.Design(memory=0.0, batch=4.0)
    held, computed = (
        convolution_shapes([Layer("x", kind, **SCORES, rewritten=kind == "product")]) for kind in ("linear", "product")
    )
    second = np.array([[1e-6]])
    resting, written = (winograd.energy(shapes, MODERATE, chip, second) for shapes in (held, computed))
    assert written["dacs"] - resting["dacs"] == pytest.approx(3 * 8 * 7 * MODERATE["dac_energy"])
    # It comes out of the buffer, not out of DRAM.
    bits = 3 * 8 * 7 * MODERATE["data_bits"]
    assert written["sram"] - resting["sram"] == pytest.approx(bits * MODERATE["sram_energy"])
    assert written["dram"] == resting["dram"] == 0
