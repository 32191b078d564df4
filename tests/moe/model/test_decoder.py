"""The engine computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_mixtral import make_model
from transformers import AutoModelForCausalLM

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine


def reference(model: Path, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(model, torch_dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return network(ids).logits


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(1))


def test_float32_logits_equal_transformers(model_f32: Path, ids: torch.Tensor) -> None:
    engine = Engine.load(model_f32, dtype=torch.float32)
    assert (engine.logits(ids) - reference(model_f32, ids, torch.float32)).abs().max() <= 1e-4


def test_bfloat16_argmax_agrees_with_transformers(tmp_path: Path) -> None:
    model_bf16 = make_model(tmp_path, torch.bfloat16, initializer_range=0.05)
    ids = torch.randint(0, 96, (16, 64), generator=torch.Generator().manual_seed(2))
    theirs, exact = (reference(model_bf16, ids, dtype).float() for dtype in (torch.bfloat16, torch.float32))
    # Random weights leave many near ties; where rounding decides, transformers disagrees with itself.
    noise = (theirs - exact).square().mean().sqrt()
    best = exact.topk(2).values
    decided = best[..., 0] - best[..., 1] > 4 * noise
    assert decided.float().mean() > 0.5
    agree = Engine.load(model_bf16).logits(ids).argmax(-1) == theirs.argmax(-1)
    assert agree[decided].float().mean() >= 0.99


def test_sliding_window_equals_transformers(tmp_path: Path, ids: torch.Tensor) -> None:
    model = make_model(tmp_path, torch.float32, sliding_window=7)
    engine = Engine.load(model, dtype=torch.float32)
    expected = reference(model, ids, torch.float32)
    assert (engine.logits(ids) - expected).abs().max() <= 1e-4
    cache = engine.cache(1, 40)
    steps = [engine.step(ids[:1, i : i + 1], cache) for i in range(40)]
    assert (torch.cat(steps, dim=1) - expected[:1]).abs().max() <= 1e-4


def test_tied_embeddings_and_one_shard(tmp_path: Path, ids: torch.Tensor) -> None:
    model = make_model(tmp_path, torch.float32, tie_word_embeddings=True)
    engine = Engine.load(model, dtype=torch.float32)
    assert (engine.logits(ids) - reference(model, ids, torch.float32)).abs().max() <= 1e-4


def test_generate_equals_transformers_greedy(model_f32: Path, ids: torch.Tensor) -> None:
    network = AutoModelForCausalLM.from_pretrained(model_f32).eval()
    network.generation_config.eos_token_id = None
    expected = network.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
    engine = Engine.load(model_f32, dtype=torch.float32)
    assert torch.equal(engine.generate(ids, 12), expected[:, ids.shape[1] :])
    assert torch.equal(engine.generate(ids[0].tolist(), 12), expected[0, ids.shape[1] :])


def test_sequences_of_unlike_lengths_decode_together(model_f32: Path, ids: torch.Tensor) -> None:
    engine = Engine.load(model_f32, dtype=torch.float32)
    lengths = [5, 17, 9]
    cache = engine.cache(3, 40)
    for slot, length in enumerate(lengths):
        engine.step(ids[slot : slot + 1, :length], cache, [slot])
    # Sequence 1 sits the step out; slot order is the caller's.
    step = torch.stack([ids[2, 9:10], ids[0, 5:6]])
    together = engine.step(step, cache, [2, 0])
    for row, (slot, length) in enumerate([(2, 9), (0, 5)]):
        alone = engine.logits(ids[slot, : length + 1])[-1]
        assert (together[row, 0] - alone).abs().max() <= 1e-4
    assert cache.lengths == [6, 17, 10]


def test_chunked_prefill_equals_whole(model_f32: Path, ids: torch.Tensor) -> None:
    engine = Engine.load(model_f32, dtype=torch.float32)
    cache = engine.cache(3, 40)
    parts = [engine.step(ids[:, begin:end], cache, last_only=False) for begin, end in [(0, 11), (11, 12), (12, 40)]]
    assert (torch.cat(parts, dim=1) - engine.logits(ids)).abs().max() <= 1e-4


@pytest.mark.parametrize("bad", [[], [96], [-1], [[[1]]]])
def test_bad_tokens_are_refused(model_f32: Path, bad: list[int]) -> None:
    with pytest.raises(UserError):
        Engine.load(model_f32).logits(bad)
