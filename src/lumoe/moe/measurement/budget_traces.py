"""Budget traces: what the other tenants of a machine leave to the model, over time.

A trace is a table of (time_s, budget, preference). Budgets are text, as a person writes them: 24GB, or 40% of the model
at 16 bits, so that one trace fits every model.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.planning.budget import parse_budget
from lumoe.moe.planning.plan import Preference

COLUMNS = ("time_s", "budget", "preference")
DAY_S = 86400.0


def read_trace(path: str | Path) -> pd.DataFrame:
    """Read a trace.

    Raises:
        UserError: a column is missing, times do not rise from 0, or a budget or preference is not one.
    """
    table = read_csv(path, COLUMNS)
    times = pd.to_numeric(table["time_s"], errors="coerce").to_numpy(dtype=float)
    if len(times) == 0 or not np.isfinite(times).all() or times[0] != 0 or (np.diff(times) <= 0).any():
        raise UserError(f"{path}: 'time_s' must rise from 0, one row per change")
    for row, (budget, preference) in enumerate(zip(table["budget"], table["preference"], strict=True), start=2):
        if preference not in get_args(Preference):
            known = ", ".join(get_args(Preference))
            raise UserError(f"{path}, line {row}: the preference is '{preference}'; known: {known}")
        try:
            parse_budget(str(budget), 1 << 40)
        except UserError as error:
            raise UserError(f"{path}, line {row}: {error}") from None
    return table.assign(time_s=times, budget=table["budget"].astype(str))[list(COLUMNS)]


def budgets(trace: pd.DataFrame, whole_bytes: int) -> list[int]:
    """Return a trace's budgets in bytes; `whole_bytes` is what % refers to."""
    return [parse_budget(text, whole_bytes) for text in trace["budget"]]


def steps(duration_s: float) -> pd.DataFrame:
    """A neighbour comes in two steps and leaves in two: 100, 60, 30, 60, 100 %, then quality is asked for."""
    levels = [100, 60, 30, 60, 100, 100]
    preferences = ["throughput"] * 5 + ["quality"]
    return _table(np.arange(6) * duration_s / 6, levels, preferences)


def sawtooth(duration_s: float, teeth: int = 3) -> pd.DataFrame:
    """A neighbour that grows by 10 % at a time down to 30 % for us and starts over."""
    levels = list(range(100, 20, -10)) * teeth
    return _table(np.arange(len(levels)) * duration_s / len(levels), levels, ["throughput"] * len(levels))


def multi_tenant(
    duration_s: float,
    seed: int,
    arrivals_per_hour: float = 1.5,
    stay_hours: float = 2.0,
    floor: int = 30,
    quality_share: float = 0.25,
) -> pd.DataFrame:
    """A day on a shared machine, compressed: tenants arrive as a Poisson process, take memory, stay and leave.

    The rate of arrivals follows the hour, `λ(t) = λ (1 − cos 2πt/day)`: none at midnight, twice the mean at noon. A
    tenant takes 10, 20 or 30 % of the memory and stays an exponentially distributed time; what would leave us less than
    the floor is turned away. Requests that come in with a change prefer quality with a fixed chance.

    Args:
        duration_s: seconds that the day is compressed to.
        seed: of everything random here; equal seeds give equal traces.
        arrivals_per_hour: mean of the day.
        stay_hours: mean stay of a tenant.
        floor: % of the memory that no tenant can take.
        quality_share: chance of a change to ask for quality.
    """
    random = np.random.default_rng(seed)
    changes: list[tuple[float, int]] = []
    time_s, leaving = 0.0, list[tuple[float, int]]()
    while True:
        # Thinning (Lewis and Shedler 1979): draw at the highest rate, keep with chance λ(t) / highest.
        time_s += random.exponential(3600 / (2 * arrivals_per_hour))
        if time_s >= DAY_S:
            break
        if random.random() >= (1 - np.cos(2 * np.pi * time_s / DAY_S)) / 2:
            continue
        size, stay_s = int(random.choice([10, 20, 30])), float(random.exponential(3600 * stay_hours))
        leaving = [(end, taken) for end, taken in leaving if end > time_s]
        if 100 - sum(taken for _, taken in leaving) - size < floor:
            continue
        leaving.append((time_s + stay_s, size))
        changes += [(time_s, -size), (time_s + stay_s, size)]
    changes = sorted(change for change in changes if change[0] < DAY_S)
    times = np.array([0.0, *(time for time, _ in changes)])
    levels = np.cumsum([100, *(size for _, size in changes)])
    preferences = np.where(random.random(len(times)) < quality_share, "quality", "throughput")
    return _table(np.round(times * duration_s / DAY_S, 3), levels.tolist(), preferences.tolist())


def _table(times: np.ndarray, levels: list[int], preferences: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({"time_s": times, "budget": [f"{level}%" for level in levels], "preference": preferences})
    # Two changes in one instant are one: the last.
    return table.drop_duplicates("time_s", keep="last", ignore_index=True)
