"""Every family against transformers: the same logits, all at once, in chunks and token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import MODELS, VOCABULARY, make

from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.quantize import Recipe, quantize

PROMPT, DECODED = 56, 32
Pair = tuple[str, Path, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", params=sorted(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A family's name, its checkpoint, token ids and transformers' logits of them."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make(request.param, folder)
    ids = torch.randint(3, VOCABULARY, (2, PROMPT + DECODED), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = model(ids).logits
    return request.param, folder, ids, logits


def test_logits_equal_those_of_transformers(pair: Pair) -> None:
    _, folder, ids, expected = pair
    engine = Engine.load(folder, dtype=torch.float32)
    torch.testing.assert_close(engine.logits(ids), expected, rtol=0, atol=1e-4)


def test_decoding_in_chunks_and_token_by_token_gives_the_same_logits(pair: Pair) -> None:
    """Two sequences, the second begun later: slots of unlike lengths step together."""
    name, folder, ids, expected = pair
    if "longrope" in name:
        pytest.skip("transformers turns what is cached by the factors of the length that it had then")
    engine = Engine.load(folder, dtype=torch.float32)
    cache = engine.cache(2, ids.shape[1])
    parts = [engine.step(ids[:1, begin:end], cache, [0], last_only=False) for begin, end in ((0, 40), (40, PROMPT))]
    late = [engine.step(ids[1:, : PROMPT - 20], cache, [1], last_only=False)]
    for at in range(DECODED):
        both = engine.step(torch.stack((ids[0, PROMPT + at], ids[1, PROMPT - 20 + at])).unsqueeze(1), cache)
        parts.append(both[:1])
        late.append(both[1:])
    torch.testing.assert_close(torch.cat(parts, dim=1), expected[:1], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat(late, dim=1), expected[1:, : PROMPT - 20 + DECODED], rtol=0, atol=1e-4)


def test_bfloat16_chooses_the_likeliest_tokens_of_float32(pair: Pair, tmp_path: Path) -> None:
    """Where float32 is sure of a token, by more than rounding to 8 bits of mantissa moves logits."""
    name, _, ids, expected = pair
    make(name, tmp_path, torch.bfloat16)
    found = Engine.load(tmp_path, dtype=torch.bfloat16).logits(ids).float()
    best = expected.topk(2, dim=-1)
    sure = best.values[..., 0] - best.values[..., 1] > 0.5
    agree = (found.argmax(-1) == best.indices[..., 0])[sure].float().mean()
    assert sure.sum() > 30
    assert agree > 0.85


def test_residency_policy_and_budget_change_no_bit(pair: Pair, tmp_path: Path) -> None:
    """Experts at 4 bits and at 16, some of them missing, under every policy, before and after a change of budget."""
    name, _, ids, _ = pair
    make(name, tmp_path / "model", torch.bfloat16)
    checkpoint = Checkpoint(tmp_path / "model")
    quantize(checkpoint, ids[:, :40], tmp_path / "int4", Recipe("rtn", 4, 16))
    layers, experts = checkpoint.architecture.plan_shape
    bits = np.where(np.arange(layers * experts) % 3, 4, 16).reshape(layers, experts)
    whole = Plan(bits, np.ones_like(bits, dtype=bool))
    expected = Engine.load(tmp_path / "model", tmp_path / "int4", whole).logits(ids)
    assert torch.isfinite(expected).all()
    some = Plan(bits, np.arange(layers * experts).reshape(layers, experts) % 2 == 0)
    for policy in ("static", "lru"):
        engine = Engine.load(tmp_path / "model", tmp_path / "int4", some, policy=policy)
        assert torch.equal(engine.logits(ids), expected)
        engine.reconfigure(whole)
        assert torch.equal(engine.logits(ids), expected)
