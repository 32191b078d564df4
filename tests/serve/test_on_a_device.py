"""The server on a GPU's engine; the processor stands in for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Running, serving, settled

from lumoe.errors import UserError
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine import device
from lumoe.moe.engine.device import KEPT_FREE
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, open_on_device
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

FREE = 2 << 20
PROMPTS = ["the quick", "a stitch in", "lazy dog", "Zoë pays", "nine over"]
LIMITS = Limits(slots=4, context=64)
CACHE = 4 * 4 * 8192  # four sequences of four blocks, in whole pages


@pytest.fixture(scope="module")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(3))
    quantize(Checkpoint(model), tokens, folder, Recipe("rtn", 4, 64))
    return folder


@pytest.fixture(scope="module")
def on_device(model: Path, quantized: Path) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "device_of", lambda name: torch.device("cpu"))
        patch.setattr(device, "free_bytes", lambda place: FREE + CACHE + KEPT_FREE)
        with serving(Setup(model, quantized, device="cuda"), LIMITS) as found:
            yield found


def greedy(engine: Engine, ids: list[int], count: int) -> list[int]:
    """Return the likeliest tokens over a cache of the server's shape: others add up in another order."""
    cache, tokens, made = engine.cache(LIMITS.slots, LIMITS.context), torch.tensor([ids]), []
    for _ in range(count):
        tokens = engine.step(tokens, cache, [0])[:, -1].argmax(-1, keepdim=True)
        made.append(int(tokens))
    return made


def test_answers_are_those_of_the_engine(on_device: Running, model: Path, quantized: Path) -> None:
    body = {"model": on_device.name, "max_tokens": 12, "temperature": 0, "logprobs": 2}

    def answer(prompt: str) -> dict[str, Any]:
        with on_device.client() as client:
            found: dict[str, Any] = client.post("/v1/completions", json=body | {"prompt": prompt}).json()["choices"][0]
            return found

    with on_device.client() as client:
        settled(client)
    alone = [answer(prompt) for prompt in PROMPTS]
    opened = open_on_device(Checkpoint(model), [QuantizedExperts(quantized)], EngineConfig())
    engine = Engine(opened, on_device.server.engine.plan)
    tokenizer = load_tokenizer(model)
    assert isinstance(on_device.server.engine.decoder, StaticDecoder)
    for prompt, found in zip(PROMPTS, alone, strict=True):
        ids = tokenizer.backend_tokenizer.encode(prompt).ids
        made = greedy(engine, ids, 12)
        assert found["text"] == tokenizer.decode([*ids, *made])[len(prompt) :].split("<|endoftext|>")[0]
    # More sequences than slots, joining and leaving one another's steps. What shares a step may be rounded otherwise,
    # so two tokens that are about as likely may change places.
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(answer, PROMPTS))
    for one, other in zip(alone, together, strict=True):
        assert_equal_until_a_tie(one["logprobs"], other["logprobs"])


def assert_equal_until_a_tie(one: dict[str, Any], other: dict[str, Any], near: float = 0.5) -> None:
    """Two answers have the same tokens; where they part, if they do, both tokens are about as likely in the first one.

    Logits of this model's wide weights lie around 16, where neighbours in bfloat16 are 0.125 apart.
    """
    for place, (a, b) in enumerate(zip(one["token_logprobs"], other["token_logprobs"], strict=False)):
        if one["tokens"][place] != other["tokens"][place]:
            first, second = sorted(one["top_logprobs"][place].values(), reverse=True)
            assert first - second < near
            assert other["tokens"][place] in one["top_logprobs"][place]
            return
        assert a == pytest.approx(b, abs=near)
    assert one["tokens"] == other["tokens"]


def test_tokens_are_drawn_and_reported(on_device: Running) -> None:
    body = {"model": on_device.name, "prompt": "the", "max_tokens": 8, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    with on_device.client() as client:
        one, other = (client.post("/v1/completions", json=body | {"logprobs": 2}).json() for _ in range(2))
    assert one["choices"] == other["choices"]
    assert len(one["choices"][0]["logprobs"]["tokens"]) == 8


def test_the_budget_ends_at_the_devices_memory(on_device: Running) -> None:
    engine = on_device.server.engine
    with on_device.client() as client:
        state = settled(client)
        most = engine.decoder.nbytes + FREE + on_device.server.governor.pool.nbytes
        assert state["most_bytes"] == min(most, state["whole_bytes"]) == state["budget_bytes"]
        refused = client.put("/v1/budget", json={"budget": most + 1})
        assert refused.status_code == 400
        assert f"exceeds the {most}" in refused.json()["error"]["message"]
        assert client.put("/v1/budget", json={"budget": "60%"}).status_code == 200
        changed = settled(client)
        assert changed["bytes_fast"] <= changed["budget_bytes"] < state["budget_bytes"]
        assert changed["quantized_experts"] > 0
        assert client.put("/v1/budget", json={"budget": state["budget_bytes"]}).status_code == 200


def test_experts_at_four_bits_are_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "device_of", lambda name: torch.device("cpu"))
    with pytest.raises(UserError, match=r"cuda: give --quantized FOLDER"):
        load(Setup(model, device="cuda"), LIMITS)
