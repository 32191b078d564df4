"""Families against stored logits of a transformers newer than the lock's (`references/make_references.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumoe.moe.engine.engine import Engine

REFERENCES = Path(__file__).parents[1] / "references"


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "gpt_oss", "minimax_m2", "qwen2_moe", "qwen3_5_moe_text"])
def test_logits_equal_those_of_a_newer_transformers(name: str) -> None:
    expected = load_file(REFERENCES / name / "expected.safetensors")
    ids, logits = expected["ids"], expected["logits"]
    engine = Engine.load(REFERENCES / name, dtype=torch.float32)
    torch.testing.assert_close(engine.logits(ids), logits, rtol=0, atol=1e-4)
    cache = engine.cache(2, ids.shape[1])
    parts = [engine.step(ids[:, :56], cache, last_only=False)]
    parts += [engine.step(ids[:, at : at + 1], cache) for at in range(56, ids.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits, rtol=0, atol=1e-4)
