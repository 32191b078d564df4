"""The trigram baseline against a direct reading of its definition."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.moe.training.trigram import Trigram


def by_definition(stream: list[int], vocabulary: int, before: int, last: int, token: int) -> float:
    """Interpolated Kneser-Ney with dictionaries, one n-gram at a time."""
    triples = Counter(zip(stream, stream[1:], stream[2:], strict=False))
    pairs = Counter((b, c) for _, b, c in triples)
    singles = Counter(c for _, c in pairs)
    lower = 1 / vocabulary
    for counts, context in ((singles, ()), (pairs, (last,)), (triples, (before, last))):
        keyed = {key if isinstance(key, tuple) else (key,): count for key, count in counts.items()}
        once, twice = (sum(count == n for count in keyed.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        continuations: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        for key, count in keyed.items():
            continuations[key[:-1]][key[-1]] = count
        here = continuations.get(context)
        if here:
            total = sum(here.values())
            lower = (max(here.get(token, 0) - discount, 0) + discount * len(here) * lower) / total
    return lower


streams = st.lists(st.integers(0, 6), min_size=3, max_size=60)


@settings(deadline=None)
@given(streams, st.integers(0, 6), st.integers(0, 6))
def test_it_is_interpolated_kneser_ney(stream: list[int], before: int, last: int) -> None:
    tokens = np.arange(7)
    ours = Trigram(np.array(stream), 7).probabilities(np.full(7, before), np.full(7, last), tokens)
    expected = [by_definition(stream, 7, before, last, token) for token in range(7)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@settings(deadline=None)
@given(streams, st.integers(0, 6), st.integers(0, 6))
def test_probabilities_sum_to_one(stream: list[int], before: int, last: int) -> None:
    p = Trigram(np.array(stream), 7).probabilities(np.full(7, before), np.full(7, last), np.arange(7))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()


def test_a_repeating_stream_is_learned() -> None:
    stream = np.tile([1, 2, 3, 4], 200)
    nll = Trigram(stream, 5).nll(stream, np.arange(2, 100))
    assert nll.max() < 0.05
    assert Trigram(stream, 5).nll(np.array([1, 2, 1]), np.array([2]))[0] > 3


def test_too_little_text_or_too_many_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        Trigram(np.array([1, 2]), 5)
    with pytest.raises(ValueError, match="63 bits"):
        Trigram(np.array([1, 2, 3]), 2**21)
