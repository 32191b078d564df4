"""lm-eval's client of completions: the same log-likelihoods over HTTP as from the model in its own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, serving
from spoken import KINDS, random_model
from transformers import MixtralForCausalLM

from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

# In nats, of continuations of 1 to 40 tokens: two implementations in float32, each with a rounding of its own.
TOLERANCE = 1e-4
PAIRS = [
    ("there was a house", " near the sea"),
    ("there was a house", " near the house"),
    ("", "there was a house near the sea"),
    ("the sea", "." * 20),
    ("there was a house near the sea. " * 6, "é文 there"),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("evaluated") / "model"
    return random_model(model, KINDS[request.param](), max_position_embeddings=256)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with serving(Setup(folder, dtype="float32"), Limits(slots=4, context=256, prefill_tokens=64)) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _offline() -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=place) for place, one in enumerate(arguments)]


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"num_concurrent": 4}], ids=str)
def test_log_likelihoods_over_http_are_those_of_the_model(
    folder: Path, running: Running, options: dict[str, int]
) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    served = LocalCompletionsAPI(
        base_url=f"{running.url}/v1/completions",
        tokenizer_backend="huggingface",
        model=running.name,
        tokenizer=str(folder),
        max_length=256,
        max_retries=1,
        **options,
    )
    model = MixtralForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    own = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), max_length=255, batch_size=1, add_bos_token=False)
    found = served.loglikelihood(requests("loglikelihood", PAIRS))
    expected = own.loglikelihood(requests("loglikelihood", PAIRS))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [(text,) for pair in PAIRS for text in pair if text]
    found = served.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    expected = own.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    assert found == pytest.approx(expected, abs=TOLERANCE)
