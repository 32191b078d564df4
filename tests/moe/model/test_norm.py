"""The kernel of the norm against float64, with and without what it is made for."""

from __future__ import annotations

import pytest
import torch

from lumoe.moe.kernels.library import norms_library
from lumoe.moe.model.norm import Norm


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "width"), [(1, 128), (9, 36), (300, 1024)])
def test_norm_rounds_its_output_alone(
    rows: int, width: int, weights: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and norms_library() is None:
        pytest.skip("needs AVX2 and a C++ compiler")
    if not native:
        monkeypatch.setattr("lumoe.moe.model.norm.norms_library", lambda: None)
    draw = torch.Generator().manual_seed(rows)
    hidden = (3 * torch.randn((rows, 1, width), generator=draw)).bfloat16()
    weight = torch.randn(width, generator=draw).to(weights)
    exact = hidden.double() * (hidden.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    found = Norm(weight, 1e-5)(hidden)
    assert (found.shape, found.dtype) == (hidden.shape, torch.bfloat16)
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-12).all()
    assert torch.equal(found, torch.cat([Norm(weight, 1e-5)(row) for row in hidden.split(1)]))


def test_rows_that_do_not_follow_one_another_are_taken_as_they_are() -> None:
    hidden = torch.randn((4, 64), generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = Norm(torch.ones(32).bfloat16(), 1e-6)
    assert torch.equal(norm(hidden[:, ::2]), norm(hidden[:, ::2].clone()))
