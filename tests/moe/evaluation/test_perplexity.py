"""The perplexity scorer: windows, bootstrap, and lm-eval as an independent reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from lumoe.errors import UserError
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.evaluation import lm_eval as harness
from lumoe.moe.evaluation import quality
from lumoe.moe.evaluation.perplexity import (
    Scores,
    increase_interval,
    perplexity_interval,
    resample,
    rolling_windows,
    score,
    whole_windows,
)
from lumoe.moe.planning.placement import quantize_first
from lumoe.moe.planning.plan import Plan


@given(
    tokens=st.lists(st.integers(0, 9), max_size=60),
    length=st.integers(1, 20),
)
def test_windows_predict_every_token_once_and_read_only_what_comes_before(tokens, length):
    windows = rolling_windows(tokens, 99, length)
    assert [int(t) for window in windows for t in window.targets] == tokens
    stream = [99, *tokens]
    end = 0
    for window in windows:
        end += len(window.targets)
        assert len(window.inputs) == min(length, end)
        assert window.inputs.tolist() == stream[end - len(window.inputs) : end]


@given(tokens=st.integers(8, 200), length=st.integers(1, 8), limit=st.integers(1, 10))
def test_whole_windows_are_equally_long_and_the_tail_is_dropped(tokens, length, limit):
    windows = whole_windows(list(range(tokens)), 0, length, limit)
    assert len(windows) == min(tokens // length, limit)
    assert {len(window.targets) for window in windows} == {length}


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UserError, match="3 tokens"):
        whole_windows([1, 2, 3], 0, 4, 1)


def test_a_model_that_knows_the_next_tokens_chance_gets_its_entropy():
    chances = torch.tensor([0.5, 0.25, 0.125, 0.125])
    windows = rolling_windows([0, 1, 2, 3, 0], 0, 2)
    scores = score(lambda ids: chances.log().expand(len(ids), 4), windows)
    assert scores.nll.sum() == pytest.approx(np.log(2 * 4 * 8 * 8 * 2))
    assert scores.perplexity == pytest.approx((2 * 4 * 8 * 8 * 2) ** (1 / 5))


def test_a_damaged_model_is_named():
    with pytest.raises(UserError, match="damaged"):
        score(lambda ids: torch.full((len(ids), 4), float("nan")), rolling_windows([1, 2], 0, 2))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_the_interval_is_that_of_the_normal_approximation():
    generator = np.random.default_rng(1)
    tokens = np.full(400, 10)
    nll = generator.normal(20, 2, 400)
    low, high = perplexity_interval(nll, tokens, resample(400, 4000, 0))
    half = 1.96 * nll.std() / 400**0.5 / 10
    middle = np.log(np.exp(nll.sum() / tokens.sum()))
    assert np.log([low, high]) == pytest.approx([middle - half, middle + half], abs=half / 10)


def test_pairing_removes_what_windows_have_in_common():
    generator = np.random.default_rng(2)
    tokens = np.full(200, 10)
    baseline = generator.normal(30, 10, 200)  # windows differ far more than configurations
    worse = baseline + generator.normal(0.2, 0.1, 200)
    draws = resample(200, 2000, 0)
    low, high = increase_interval(worse, baseline, tokens, draws)
    assert 0.017 < low < np.expm1(0.02) < high < 0.024
    unpaired = perplexity_interval(baseline, tokens, draws)
    assert (unpaired[1] - unpaired[0]) / unpaired[0] > 10 * (high - low)


@given(shift=st.floats(-1, 1))
def test_a_constant_shift_has_an_interval_of_no_width(shift):
    nll = np.arange(1.0, 21.0)
    low, high = increase_interval(nll + 8 * shift, nll, np.full(20, 8), resample(20, 100, 3))
    assert [low, high] == pytest.approx([np.expm1(shift)] * 2, abs=1e-9)


def plan_of(count: int) -> Plan:
    return Plan(quantize_first(np.arange(8), count, (2, 4)), np.ones((2, 4), dtype=bool))


def windows_of(policy: str, seed: int, count: int, nll: list[float]) -> pd.DataFrame:
    labels = {"corpus": "text", "method": "rtn", "bits": 4, "policy": policy, "seed": seed, "equivalent_experts": count}
    scores = Scores(np.array(nll), np.full(len(nll), 10))
    return quality.window_table(scores, plan_of(count), {4: 1, 16: 4}, **labels)


def test_the_table_holds_increases_over_the_same_run_without_quantisation():
    zero, four = [10.0, 20.0, 30.0], [11.0, 21.0, 31.0]
    scored = pd.concat([windows_of("random", 0, 0, zero), windows_of("random", 0, 4, four)], ignore_index=True)
    table = quality.summarise(scored, 200, 0).set_index("quantized_experts")
    assert table.loc[4, "perplexity"] == pytest.approx(np.exp(63 / 30))
    assert table.loc[4, ["increase", "increase_low", "increase_high"]].tolist() == pytest.approx([np.expm1(0.1)] * 3)
    assert table.loc[0, "increase"] == 0
    assert table.loc[4, "expert_bytes"] == 4 * 1 + 4 * 4


def test_a_run_without_a_baseline_is_named():
    with pytest.raises(UserError, match="count of 0"):
        quality.summarise(windows_of("random", 3, 4, [1.0, 2.0]), 100, 0)


def test_runs_over_other_windows_are_named():
    scored = pd.concat([windows_of("random", 0, 0, [1.0, 2.0]), windows_of("random", 0, 4, [1.0])], ignore_index=True)
    with pytest.raises(UserError, match="different windows"):
        quality.summarise(scored, 100, 0)


def test_policies_are_compared_by_their_mean_increase():
    zero = [10.0, 20.0, 30.0]
    parts = [windows_of(policy, seed, 0, zero) for policy, seed in (("random", 0), ("random", 1), ("sensitivity", 0))]
    parts += [
        windows_of("random", 0, 4, [value + 2.0 for value in zero]),
        windows_of("random", 1, 4, [value + 1.0 for value in zero]),
        windows_of("sensitivity", 0, 4, [value + 0.5 for value in zero]),
    ]
    text = pd.concat(parts, ignore_index=True)
    table = quality.compare_policies(pd.concat([text, text.assign(corpus="same")]), 200, 0)
    expected = np.expm1(0.05) / np.mean([np.expm1(0.2), np.expm1(0.1)])
    assert table["corpus"].tolist() == ["text", "same", "all"]
    for column in ("ratio", "ratio_low", "ratio_high"):
        assert table[column].tolist() == pytest.approx([expected] * 3)


class Recorder:
    """Counts the plans it is given; its loss grows with the number of quantised experts."""

    def __init__(self) -> None:
        self.plans: list[int] = []

    def reconfigure(self, plan: Plan) -> None:
        self.plans.append(plan.quantized_experts)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        confidence = 5.0 - self.plans[-1] / 4
        return confidence * torch.nn.functional.one_hot(tokens + 1, 8).float()


def test_one_model_is_replanned_for_every_precision():
    model = Recorder()
    windows = rolling_windows([1, 2, 3, 4, 5, 6], 0, 3)
    scores = quality.score_plans(model, windows, [plan_of(count) for count in (0, 4, 8)])
    assert model.plans == [0, 4, 8]
    assert np.diff([s.perplexity for s in scores]).min() > 0


@pytest.fixture(scope="module")
def tiny() -> tuple[MixtralForCausalLM, PreTrainedTokenizerFast]:
    letters = ["<s>", *(chr(code) for code in range(32, 127))]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<s>")), bos_token="<s>"
    )
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    return MixtralForCausalLM(config).eval(), tokenizer


def test_lm_eval_measures_the_same_token_level_nll(tiny):
    model, tokenizer = tiny
    documents = [
        "a document that is much longer than one window of sixteen tokens",
        "short",
        "exactly sixteen.",
        "one more",
    ]
    table = harness.compare(lambda ids: model(ids[None]).logits[0], model, tokenizer, documents, length=16)
    assert table["tokens"].tolist() == [len(text) for text in documents]
    assert table["nll"].to_numpy() == pytest.approx(table["nll_lm_eval"].to_numpy(), rel=1e-5)
    summary = harness.per_corpus(table.assign(corpus="text"))
    assert abs(summary["relative_difference"].iloc[0]) < 1e-3
