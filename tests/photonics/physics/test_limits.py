"""One check serves numbers, arrays of designs and tensors, and names the first element that is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lumoe.errors import UserError
from lumoe.photonics.physics.limits import require_between, require_finite, require_not_negative, require_positive

KINDS: list[Callable[[list[float]], Any]] = [
    lambda values: values[-1],
    np.array,
    torch.tensor,
    lambda values: torch.tensor(values, requires_grad=True),
]


@pytest.mark.parametrize("kind", KINDS, ids=["number", "array", "tensor", "tensor with gradient"])
def test_what_is_within_passes_and_what_is_not_is_named(kind: Callable[[list[float]], Any]) -> None:
    require_between("share", kind([0.25, 0.5]), 0.0, 0.75)
    require_between("share", kind([0.0, 0.75]), 0.0, 0.75, closed=True)
    for wrong in (0.75, 0.0, -0.5, math.nan):
        with pytest.raises(UserError, match=rf"share is {wrong:g}, but must lie in \(0, 0.75\)"):
            require_between("share", kind([0.25, wrong]), 0.0, 0.75)
    require_positive("load", kind([50.0]))
    with pytest.raises(UserError, match=r"load is 0, but must lie in \(0, inf\)"):
        require_positive("load", kind([50.0, 0.0]))
    with pytest.raises(UserError, match=r"current is -1, but must lie in \[0, inf\]"):
        require_not_negative("current", kind([0.0, -1.0]))


@pytest.mark.parametrize("kind", KINDS, ids=["number", "array", "tensor", "tensor with gradient"])
def test_a_sum_that_overflows_is_finite_where_its_elements_are(kind: Callable[[list[float]], Any]) -> None:
    require_finite("input", kind([3e38, 3e38]))
    for wrong in (math.inf, -math.inf, math.nan):
        with pytest.raises(UserError, match=f"input is {wrong:g}, but every element must be finite"):
            require_finite("input", kind([1.0, wrong]))


def test_a_double_close_to_a_limit_keeps_its_digits() -> None:
    require_between("loss", 1 - 1e-12, 0.0, 1.0)
    with pytest.raises(UserError, match="loss is 1, but must lie in"):
        require_between("loss", 1.0, 0.0, 1.0)
