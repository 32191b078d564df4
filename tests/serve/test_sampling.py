"""Sampling: what is kept, how often it is drawn, and whom it depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2_contingency, chisquare
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lumoe.moe.serve.sampling import Sampler, Sampling, keep, sample


def column(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def kept(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    return keep(logits[None], torch.tensor([[top_k]]), column(top_p), column(min_p))[0]


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=40), st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[float], top_p: float) -> None:
    values = torch.tensor(logits)
    chances, chosen = torch.softmax(values, -1).double(), kept(values, top_p=top_p)
    total = float(chances[chosen].sum())
    assert total >= min(top_p, float(chances.sum())) - 1e-6
    assert total - float(chances[chosen].min()) < top_p + 1e-6, "its least token is not needed"
    assert chosen.all() or chances[~chosen].max() <= chances[chosen].min()


DISTINCT = st.lists(st.integers(-4000, 4000), min_size=2, max_size=40, unique=True)


@given(DISTINCT, st.integers(1, 50), st.floats(0.05, 0.95), st.floats(0, 1))
def test_filters_are_those_of_transformers(values: list[int], top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor(values) / 500.0
    processors = [
        ({"top_k": top_k}, [TopKLogitsWarper(top_k)]),
        ({"top_p": top_p}, [TopPLogitsWarper(top_p)]),
        ({"min_p": min_p}, [MinPLogitsWarper(min_p)]),
        (
            {"top_k": top_k, "top_p": top_p, "min_p": min_p},
            [TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)],
        ),
    ]
    for asked, theirs in processors:
        expected = logits[None]
        for processor in theirs:
            expected = processor(torch.zeros(1, 1, dtype=torch.int64), expected)
        # Sums that equal the limit but for rounding may fall on either side of it.
        if not torch.equal(kept(logits, **asked), expected[0] > -torch.inf):  # type: ignore[arg-type]
            chances = torch.softmax(logits[logits >= logits.topk(min(asked.get("top_k", 99), len(logits)))[0][-1]], -1)
            sums = chances.double().sort(descending=True)[0].cumsum(0)
            ratios = chances / chances.max()
            assert min(float((sums - top_p).abs().min()), float((ratios - min_p).abs().min())) < 1e-6


@given(DISTINCT, st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6))
def test_bias_and_repetition_are_those_of_transformers(values: list[int], prompt: list[int], drawn: list[int]) -> None:
    logits = torch.tensor(values) / 500.0
    sampler = Sampler(Sampling(repetition_penalty=1.7, logit_bias=((1, -2.5),)), prompt)
    for token in drawn:
        sampler.drawn(token)
    expected = SequenceBiasLogitsProcessor({(1,): -2.5})(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone())
    if prompt or drawn:
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *drawn]]), expected)
    changed = logits.clone()
    sampler.change(changed)
    torch.testing.assert_close(changed, expected[0])


def test_frequency_counts_what_the_answer_has_and_presence_that_it_has_it() -> None:
    sampler = Sampler(Sampling(frequency_penalty=0.5, presence_penalty=-1.25), prompt=[3, 3])
    for token in (0, 2, 2, 2):
        sampler.drawn(token)
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0])
    sampler.change(logits)
    assert logits.tolist() == [1 - 0.5 + 1.25, 2.0, 3 - 1.5 + 1.25, 4.0]


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({}, [2, 2, 2, 2]),
        ({"presence_penalty": 1.5}, [2, 1, 2, 2]),
        ({"frequency_penalty": 1.0}, [2, 1, 2, 1]),
        ({"logit_bias": ((0, 100.0), (2, -100.0))}, [0, 0, 0, 0]),
        ({"repetition_penalty": 2.0}, [2, 1, 2, 2]),
    ],
)
def test_greedy_answers_follow_penalties_as_well(asked: dict[str, Any], tokens: list[int]) -> None:
    logits = torch.tensor([[0.5, 2.0, 3.0]])
    sampler = Sampler(Sampling(temperature=0, **asked))
    others = [Sampler(Sampling(temperature=0)), Sampler(Sampling(seed=1, presence_penalty=2.0))]
    found = [sample(logits.expand(3, -1), [others[0], sampler, others[1]])[:2] for _ in range(4)]
    assert [two[1].token for two in found] == tokens
    assert [two[0].token for two in found] == [2] * 4, "nobody else's logits are changed"


def test_reported_log_probabilities_are_the_models_own_under_penalties() -> None:
    logits = torch.tensor([[0.5, 2.0, 3.0]])
    found = sample(logits, [Sampler(Sampling(temperature=0, top_logprobs=1, logit_bias=((0, 100.0),)))])[0]
    own = torch.log_softmax(logits[0], -1)
    assert found.token == 0
    assert found.logprob == pytest.approx(float(own[0]))
    assert found.top[0] == (2, pytest.approx(float(own[2])))


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [({}, [0, 1, 2, 3]), ({"top_p": 0.8}, [0, 3]), ({"top_k": 3}, [0, 1, 3]), ({"min_p": 0.2}, [0, 3])],
)
def test_draws_follow_the_probabilities(asked: dict[str, Any], allowed: list[int]) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    expected = torch.softmax(logits.double() / 0.7, -1)[allowed].numpy()
    # 100 sequences of one seed and 80 positions of each: all of these draws are independent.
    samplers = [Sampler(Sampling(temperature=0.7, seed=3, sequence=index, **asked)) for index in range(100)]
    tokens = [[one.token for one in sample(logits.expand(100, -1), samplers)] for _ in range(80)]
    counts = np.bincount(np.ravel(tokens), minlength=4)
    assert counts.sum() == counts[allowed].sum() == 8000
    assert chisquare(counts[allowed], 8000 * expected / expected.sum()).pvalue > 0.001
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (np.ravel(tokens[:-1]), np.ravel(tokens[1:])), 1)
    pairs = pairs[np.ix_(allowed, allowed)]
    assert chi2_contingency(pairs).pvalue > 0.001, "a draw does not depend on the one before it"


def test_rare_tokens_are_drawn_as_often_as_they_should_be() -> None:
    # 10 000 tokens of one in a million each: their share shows whether small times are drawn finely enough.
    logits = torch.full((1, 10_001), float(np.log(1e-6)))
    logits[0, 0] = float(np.log(0.99))
    sampler = Sampler(Sampling(seed=11))
    rare = sum(sample(logits, [sampler])[0].token > 0 for _ in range(4000))
    assert binomtest(rare, 4000, 0.01).pvalue > 0.001


def test_rows_that_are_not_numbers_fail_and_draw_nothing() -> None:
    samplers = [Sampler(Sampling(seed=1)), Sampler(Sampling(temperature=0))]
    good = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    for wrong in (torch.nan, torch.inf):
        bad = good.clone()
        bad[1, 0] = wrong
        with pytest.raises(FloatingPointError, match="not finite"):
            sample(bad, samplers)
    assert [sampler.position for sampler in samplers] == [0, 0]


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
