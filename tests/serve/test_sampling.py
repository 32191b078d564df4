"""Sampling: what is kept, how often it is drawn, and whom it depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from lumoe.moe.serve.sampling import Sampler, Sampling, nucleus, sample


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[float], top_p: float) -> None:
    everything = torch.softmax(torch.tensor([logits]), -1)
    tokens, cumulated = nucleus(everything, torch.tensor([[top_p]], dtype=torch.float64))
    chances = torch.zeros(len(logits), dtype=torch.float64)
    chances[tokens[0]] = cumulated[0].diff(prepend=torch.zeros(1, dtype=torch.float64))
    kept = chances > 0
    torch.testing.assert_close(chances[kept], everything[0, kept].double(), rtol=1e-12, atol=1e-15)
    total = float(chances.sum())
    assert total >= min(top_p, float(everything.double().sum())) - 1e-9
    assert total - float(chances[kept].min()) < top_p, "its least token is not needed"
    assert kept.all() or everything[0, ~kept].max() <= everything[0, kept].min()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_follow_the_probabilities(top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    expected = torch.softmax(logits.double() / 0.7, -1)
    kept = torch.ones(4, dtype=torch.bool) if top_p == 1 else torch.tensor([True, False, False, True])
    assert expected[3] < 0.8 < expected[[0, 3]].sum()
    sampler = Sampler(Sampling(temperature=0.7, top_p=top_p, seed=3))
    counts = np.bincount([sample(logits[None], [sampler])[0].token for _ in range(4000)], minlength=4)
    assert counts[~kept].sum() == 0
    expected = expected[kept] / expected[kept].sum()
    assert chisquare(counts[kept], 4000 * expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_seed_gives_the_same_draws_in_any_company(top_p: float) -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    alone = Sampler(Sampling(seed=7, top_p=top_p))
    company = [Sampler(Sampling(seed=1, top_p=0.5)), Sampler(Sampling(seed=7, top_p=top_p)), Sampler(Sampling(seed=9)),
               Sampler(Sampling(temperature=0)), Sampler(Sampling(top_logprobs=3))]  # fmt: skip
    lonely = [sample(row.unsqueeze(0), [alone])[0].token for row in logits]
    together = [sample(row.expand(5, -1), company)[1].token for row in logits]
    assert lonely == together
    assert len({*lonely}) > 1


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_hardly_any_temperature_takes_the_most_likely_token(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[-30.0, 29.5, 30.0, 0.0]])
    assert sample(logits, [Sampler(Sampling(temperature=temperature, top_p=top_p))])[0].token == 2


def test_no_seed_gives_other_draws_each_time() -> None:
    logits = torch.zeros(1, 1000)
    samplers = [Sampler(Sampling()) for _ in range(4)]
    assert len({sample(logits, [sampler])[0].token for sampler in samplers}) > 1


def test_temperature_0_takes_the_most_likely_token_and_reports_the_models_own_logprobs() -> None:
    logits = torch.tensor([[0.5, 3.0, 1.0, 2.0]])
    found = sample(logits, [Sampler(Sampling(temperature=0, top_logprobs=2))])[0]
    expected = torch.log_softmax(logits[0], -1)
    assert found.token == 1
    assert found.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in found.top] == [1, 3]
    assert [value for _, value in found.top] == pytest.approx([float(expected[1]), float(expected[3])])
    assert sample(logits, [Sampler(Sampling(temperature=0))])[0].top == ()


def test_each_sequence_is_reported_as_it_asked() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    asked = [None, 0, 5, 2]
    found = sample(logits, [Sampler(Sampling(temperature=0, top_logprobs=top)) for top in asked])
    expected = torch.log_softmax(logits, -1)
    assert [len(one.top) for one in found] == [0, 0, 5, 2]
    assert found[0].logprob == 0
    for row in (1, 2, 3):
        assert found[row].logprob == pytest.approx(float(expected[row].max()))
        best = expected[row].topk(asked[row] or 0)
        assert [token for token, _ in found[row].top] == best.indices.tolist()
        assert [value for _, value in found[row].top] == pytest.approx(best.values.tolist())
