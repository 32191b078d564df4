"""Sampling: what is kept, how often it is drawn, and whom it depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lumoe.moe.serve.sampling import Sampler, Sampling, draw, nucleus


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[float], top_p: float) -> None:
    values = torch.tensor(logits)
    kept = nucleus(values, top_p)
    everything = torch.softmax(values, -1)
    chosen = kept > 0
    assert torch.equal(kept[chosen], everything[chosen])
    if top_p < 1:
        assert kept.sum() >= top_p - 1e-5
        assert kept.sum() - kept[chosen].min() < top_p + 1e-5, "its least token is not needed"
        assert chosen.all() or everything[~chosen].max() <= kept[chosen].min()


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    sampler = Sampler(Sampling(temperature=0.7, seed=3))
    counts = np.bincount([sampler.draw(logits, 3) for _ in range(4000)], minlength=4)
    assert chisquare(counts, 4000 * torch.softmax(logits.double() / 0.7, -1).numpy()).pvalue > 0.001


def test_a_seed_gives_the_same_draws_in_any_company() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    alone, company = Sampler(Sampling(seed=7)), [Sampler(Sampling(seed=seed)) for seed in (1, 7, 9)]
    lonely = [draw(row.unsqueeze(0), [alone])[0].token for row in logits]
    together = [draw(row.expand(3, -1), company)[1].token for row in logits]
    assert lonely == together


def test_no_seed_gives_other_draws_each_time() -> None:
    logits = torch.zeros(1, 1000)
    samplers = [Sampler(Sampling()) for _ in range(4)]
    assert len({draw(logits, [sampler])[0].token for sampler in samplers}) > 1


def test_temperature_0_takes_the_most_likely_token_and_reports_the_models_own_logprobs() -> None:
    logits = torch.tensor([[0.5, 3.0, 1.0, 2.0]])
    found = draw(logits, [Sampler(Sampling(temperature=0, top_logprobs=2))])[0]
    expected = torch.log_softmax(logits[0], -1)
    assert found.token == 1
    assert found.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in found.top] == [1, 3]
    assert [value for _, value in found.top] == pytest.approx([float(expected[1]), float(expected[3])])
    assert draw(logits, [Sampler(Sampling(temperature=0))])[0].top == ()
