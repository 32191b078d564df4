"""What the benchmarks conclude from what they measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumoe.moe.engine.engine import Engine
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

ROOT = Path(__file__).parents[2]
# The benchmarks are scripts that import one another by name.
sys.path.append(str(ROOT / "benchmarks"))

from mixed_load import slope  # noqa: E402
from serving_overhead import CONTEXT, just_enough, with_tokenizer  # noqa: E402
from true_width_model import build  # noqa: E402


def test_memory_that_follows_the_budget_is_no_leak() -> None:
    """The start of a run ends within a cycle of the budget; half a cycle's memory is not that of a whole one."""
    at_s = np.arange(0, 60, 0.25)
    held = pd.DataFrame({"at_s": at_s, "resident_bytes": 400e6 + 10e6 * (at_s % 4 < 2)})
    per_minute, _ = slope(held, cycle_s=4, from_s=15)
    assert per_minute == pytest.approx(0, abs=1)
    grown = held.assign(resident_bytes=held["resident_bytes"] + 2e6 * at_s / 60)
    per_minute, _ = slope(grown, cycle_s=4, from_s=15)
    assert per_minute == pytest.approx(2e6, rel=0.01)


def test_the_overhead_is_measured_with_every_expert_resident_at_4_bits(tmp_path: Path) -> None:
    """The budget has room for keys and values, and none for more precision."""
    narrow = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8}
    model, quantized = build(tmp_path / "made", **narrow)
    budget = just_enough(Engine.load(model, quantized).memory, slots=4)
    (tmp_path / "links").mkdir()
    served = with_tokenizer(model, ROOT / "data/models/mini-mixtral", tmp_path / "links")
    governor = load(Setup(served, quantized, str(budget)), Limits(slots=4, context=CONTEXT)).governor
    try:
        assert (governor.engine.plan.bits == 4).all()
        assert governor.engine.plan.resident.all()
    finally:
        governor.close()
