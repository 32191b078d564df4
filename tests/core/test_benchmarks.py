"""What the benchmarks conclude from what they measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def test_memory_that_follows_the_budget_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a run ends within a cycle of the budget; half a cycle's memory is not that of a whole one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "mixed_load", raising=False)
    from mixed_load import slope

    at_s = np.arange(0, 60, 0.25)
    held = pd.DataFrame({"at_s": at_s, "resident_bytes": 400e6 + 10e6 * (at_s % 4 < 2)})
    per_minute, _ = slope(held, cycle_s=4, from_s=15)
    assert per_minute == pytest.approx(0, abs=1)
    grown = held.assign(resident_bytes=held["resident_bytes"] + 2e6 * at_s / 60)
    per_minute, _ = slope(grown, cycle_s=4, from_s=15)
    assert per_minute == pytest.approx(2e6, rel=0.01)
