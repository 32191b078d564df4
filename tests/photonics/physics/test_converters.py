from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumoe.photonics.physics.converters import leak_of_extinction, levels, quantize


@given(bits=st.integers(2, 12), values=st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_error_is_at_most_half_a_step(bits: int, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    error = (quantize(x, bits=bits, full_scale=1.0) - x).abs().max()
    assert float(error) <= 0.5 / (2 ** (bits - 1) - 1) + 1e-12


@given(bits=st.integers(2, 10))
def test_there_are_as_many_levels_as_the_bits_say(bits: int) -> None:
    x = torch.linspace(-1, 1, 9001, dtype=torch.float64)
    assert len(quantize(x, bits=bits, full_scale=1.0).unique()) == 2**bits - 1
    assert len(quantize(x, bits=bits, full_scale=1.0, signed=False).unique()) == 2**bits


def test_clips_at_full_scale_and_is_idempotent() -> None:
    x = torch.tensor([-7.0, -1.0, 0.3, 2.0, 9.0])
    once = quantize(x, bits=4, full_scale=2.0)
    assert once.abs().max() == 2.0
    assert torch.equal(quantize(once, bits=4, full_scale=2.0), once)


def test_scales_broadcast_and_zero_scale_gives_zero() -> None:
    x = torch.ones(2, 3)
    got = quantize(x, bits=4, full_scale=torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(got, torch.tensor([[1.0] * 3, [0.0] * 3]))


def test_gradient_passes_straight_through_until_it_clips() -> None:
    x = torch.tensor([0.11, -0.5, 1.7], requires_grad=True)
    quantize(x, bits=3, full_scale=1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 0.0]


def test_modulator_leaks() -> None:
    assert leak_of_extinction(20) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="extinction ratio is -1"):
        leak_of_extinction(-1)


@pytest.mark.parametrize("bits", [0, 25, math.nan])
def test_impossible_bits_are_refused(bits: float) -> None:
    with pytest.raises(ValueError, match=r"bits is .* must lie in \[1, 24\]"):
        levels(bits, signed=True)


def test_signed_codes_take_as_many_bits_as_three_codes_do() -> None:
    with pytest.raises(ValueError, match=r"bits is 1, but signed codes are at least -1, 0 and 1: take 1\.58 bits"):
        levels(1, signed=True)
    assert levels(1.58, signed=True) == levels(2, signed=True) == (-1, 1)
    assert levels(1, signed=False) == (0, 1)
