"""Experts with bfloat16 weights in one call, and the sorting and summing around them, beside torch's operators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe import compiled
from lumoe.moe.kernels import dense, routing
from lumoe.moe.kernels.library import Gate, dense_library


@pytest.fixture(params=["", "avx2"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels built for this processor, and those that every processor with AVX2 gets."""
    monkeypatch.setenv(compiled.CHOICE, request.param)
    dense_library.cache_clear()
    if dense_library() is None:
        pytest.skip("needs AVX2 and a C++ compiler")
    yield request.param
    dense_library.cache_clear()


def expert(hidden: int, wide: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return w1, w2 and w3, each at a place of its own within a cache line."""
    made = []
    for place, (rows, inputs) in enumerate(((wide, hidden), (hidden, wide), (wide, hidden))):
        memory = torch.randn(rows * inputs + 40, generator=draw).div(inputs**0.5).bfloat16()
        made.append(memory[7 * place :][: rows * inputs].view(rows, inputs))
    return made[0], made[1], made[2]


@pytest.mark.parametrize(("hidden", "wide"), [(32, 96), (64, 448), (160, 32)])
@pytest.mark.parametrize("gate", [Gate(), Gate(limit=0.7, alpha=1.702, offset=1.0)])
def test_experts_are_those_of_float64(instructions: str, hidden: int, wide: int, gate: Gate) -> None:
    draw, shares = torch.Generator().manual_seed(hidden), [1, 3, 1, 6]
    ends = [0, *accumulate(shares)]
    matrices = [expert(hidden, wide, draw) for _ in shares]
    weights = [dense.DenseWeights(*each) for each in matrices]
    rows = torch.randn((ends[-1], hidden), generator=draw).mul(2).bfloat16()
    output = torch.full_like(rows, math.nan)
    dense.run_together(weights, ends, rows, output, [gate] * len(weights))
    for one, (w1, w2, w3), begin, end in zip(weights, matrices, ends, ends[1:], strict=False):
        first, third = (rows[begin:end].double() @ w.double().t() for w in (w1, w3))
        first, third = first.clamp(max=gate.limit), third.clamp(-gate.limit, gate.limit)
        expected = (first * torch.sigmoid(gate.alpha * first) * (third + gate.offset)) @ w2.double().t()
        # The activation between the matrices and the output are rounded to 2^-9 of their size.
        assert (output[begin:end] - expected).norm() <= 2**-8 * expected.norm()
        assert torch.equal(output[begin:end], one(rows[begin:end], gate))  # alone, the same bits
        assert torch.equal(output[end - 1 : end], one(rows[end - 1 : end], gate))


def test_a_token_is_not_copied_for_each_of_its_experts(instructions: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [dense.DenseWeights(*expert(64, 96, draw)) for _ in range(3)]
    token = torch.randn((1, 64), generator=draw).bfloat16()
    output = torch.empty((3, 64), dtype=torch.bfloat16)
    dense.run_together(weights, range(4), token.expand(3, -1), output)
    assert torch.equal(output, torch.cat([one(token) for one in weights]))


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 40), experts=st.integers(1, 20), wanted=st.integers(1, 6), seed=st.integers(0, 99))
def test_sorting_and_summing_are_torchs(tokens: int, experts: int, wanted: int, seed: int) -> None:
    draw, k = torch.Generator().manual_seed(seed), min(wanted, experts)
    chosen = torch.rand((tokens, experts), generator=draw).topk(k).indices
    found = [routing.grouped(chosen, experts)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routing, "router_library", lambda: None)
        found.append(routing.grouped(chosen, experts))
    for counts, rows, places in found:
        assert counts == torch.bincount(chosen.flatten(), minlength=experts).tolist()
        assert torch.equal(rows[places], torch.arange(tokens).unsqueeze(1).expand(-1, k))
        assert chosen.flatten().sort(stable=True).indices.tolist() == places.flatten().argsort().tolist()
    outputs = torch.randn((tokens * k, 48), generator=draw).bfloat16()
    weights = torch.rand((tokens, k), generator=draw).bfloat16()
    onto = torch.randn((tokens, 48), generator=draw).bfloat16()
    for at in (None, found[0][2]):
        taken = outputs.view(tokens, k, 48) if at is None else outputs[at]
        exact = (taken.double() * weights.double().unsqueeze(-1)).sum(1)
        summed = routing.weighted_sums(outputs, weights, at)
        assert ((summed - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()
        assert torch.equal(routing.weighted_sums(outputs, weights, at, onto), onto + summed)
        in_float32 = routing.weighted_sums(outputs.float(), weights.float(), at, onto.float())
        assert torch.allclose(in_float32.double(), onto.double() + exact, atol=1e-5)
