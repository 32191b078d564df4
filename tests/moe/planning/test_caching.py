"""The values by which cache policies choose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.moe.planning.caching import Caching, Values

steps = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=60)


@given(steps=steps, half_life=st.floats(0.01, 50))
def test_lfru_values_are_the_sum_of_decayed_uses(steps: list[list[int]], half_life: float) -> None:
    values = Values(Caching("lfru", half_life=half_life), (1, 5))
    for used in steps:
        values.step()
        values.use(0, used)
    age = len(steps) - 1 - np.arange(len(steps))
    direct = [
        sum(2.0 ** (-age[t] / half_life) for t, used in enumerate(steps) if expert in used) for expert in range(5)
    ]
    largest = max(direct)
    assert values.now[0] / values.now.max() == pytest.approx(np.array(direct) / largest, abs=1e-9)


@given(steps=steps)
def test_lru_values_are_in_the_order_of_the_last_use(steps: list[list[int]]) -> None:
    values = Values(Caching("lru"), (1, 5))
    for used in steps:
        values.step()
        values.use(0, used)
    last = [max((t + 1 for t, used in enumerate(steps) if expert in used), default=0) for expert in range(5)]
    assert values.now[0].tolist() == last


def test_lfru_starts_where_given_frequencies_would_lead() -> None:
    frequencies = np.array([[1.0, 0.5, 0.0]])
    started = Values(Caching("lfru", half_life=16), (1, 3), frequencies)
    run = Values(Caching("lfru", half_life=16), (1, 3))
    for step in range(2000):
        run.step()
        run.use(0, [0, 1] if step % 2 else [0])
    assert started.now[0] / started.now[0, 0] == pytest.approx(run.now[0] / run.now[0, 0], abs=0.02)


def test_a_half_life_beyond_rounding_keeps_the_order_of_the_frequencies() -> None:
    values = Values(Caching("lfru", half_life=1e18), (1, 3), [[0.2, 0.1, 0.0]])
    assert values.now[0] / values.now[0, 0] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "wrong", [{"half_life": 0.0}, {"half_life": float("nan")}, {"half_life": float("inf")}, {"prefetch": -1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        Caching(**wrong)  # type: ignore[arg-type]
