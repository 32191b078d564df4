"""Replay a budget trace on a model that generates all the while, and record what it gets and what a change costs.

Three ways to live with a changing budget: `adaptive` reconfigures the running engine, `static` keeps one plan for the
trace's smallest budget, `restart` loads the engine anew at each change, as software without live reconfiguration must
(its process stays, so what a real restart takes to import its libraries is not even counted).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import psutil
import torch

from lumoe.moe.engine.engine import Engine, Reconfiguration
from lumoe.moe.engine.open import OpenedModel
from lumoe.moe.measurement.budget_traces import budgets
from lumoe.moe.measurement.load_generator import LoadGenerator
from lumoe.moe.planning.placement import PaperRules, random_order
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan, Preference
from lumoe.progress import track

Strategy = Literal["adaptive", "static", "restart"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
COLUMNS = (
    "trace",
    "strategy",
    "time_s",
    "budget_bytes",
    "preference",
    "quantized_experts",
    "resident_experts",
    "bytes_fast",
    "tokens_per_s",
    "reconfiguration_s",
    "freed_s",
    "failed_requests",
    "tokens",
    "rss_bytes",
)
# Opens the model that is replayed on.
Open = Callable[[], OpenedModel]


@dataclass(frozen=True)
class Scale:
    """How a trace is replayed.

    Attributes:
        duration_s: seconds of a replay; the trace's own times are scaled to it.
        interval_s: seconds between two rows of the record.
        new_tokens: tokens generated for each prompt.
        seed: of the order in which experts give up precision.
    """

    duration_s: float
    interval_s: float
    new_tokens: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Event:
    """A change of the trace, in seconds of the replay."""

    time_s: float
    budget_bytes: int
    preference: Preference


def events(trace: pd.DataFrame, whole_bytes: int, duration_s: float) -> list[Event]:
    """Return a trace's changes scaled to `duration_s`: its last state lasts as long as its mean state does."""
    times = trace["time_s"].to_numpy(dtype=float)
    length = times[-1] * len(times) / max(len(times) - 1, 1)
    scaled = times * (duration_s / length) if length else times
    return [Event(*row) for row in zip(scaled.tolist(), budgets(trace, whole_bytes), trace["preference"], strict=True)]


class Session:
    """A running model: an engine and the work that it does, replaced together by a restart."""

    def __init__(self, engine: Engine, open_anew: Open, prompts: torch.Tensor, new_tokens: int) -> None:
        """Take an engine; `open_anew` opens its model again for a restart."""
        self.engine, self._open = engine, open_anew
        self._prompts, self._new_tokens = prompts, new_tokens
        self._past_tokens = self._past_failed = 0
        self.workload: LoadGenerator | None = None

    def work(self) -> None:
        """Begin to generate."""
        self.workload = LoadGenerator(self.engine, self._prompts, self._new_tokens)

    @property
    def tokens(self) -> int:
        """New tokens so far."""
        return self._past_tokens + (self.workload.tokens if self.workload else 0)

    @property
    def failed(self) -> int:
        """Requests that were broken off so far."""
        return self._past_failed + (self.workload.failed if self.workload else 0)

    def restart(self, plan: Plan, budget_bytes: int) -> Reconfiguration:
        """Stop, free everything, and load anew."""
        began = time.perf_counter()
        self.stop()
        del self.engine
        freed_s = time.perf_counter() - began
        self.engine = Engine(self._open(), plan, budget_bytes)
        self.work()
        return Reconfiguration(freed_s, time.perf_counter() - began)

    def stop(self) -> None:
        """Break the work off.

        Raises:
            Exception: what the engine raised while it worked, if it did.
        """
        if self.workload is not None:
            self.workload.stop()
            self._past_tokens, self._past_failed = self.tokens, self.failed
            fault, self.workload = self.workload.fault, None
            if fault is not None:
                raise fault


class Recorder:
    """Writes down what a session does, row by row."""

    def __init__(self, session: Session, first: Event, interval_s: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self.event = first
        self._session, self._interval_s = session, interval_s
        self._process = psutil.Process()
        self._began = time.perf_counter()
        self._failed = session.failed
        # Readings (time, tokens) that a speed can be taken against: the last one at least an interval old comes first.
        self._readings = deque([(self._began, session.tokens)])

    def until(self, time_s: float) -> None:
        """Add a row each interval until `time_s` seconds after the start."""
        while (left := self._began + time_s - time.perf_counter()) > 0:
            time.sleep(min(left, self._interval_s))
            self.row()

    def row(self, change: Reconfiguration | None = None) -> None:
        """Add a row: state now, speed over the last interval, and the change that has just been made, if any."""
        now, tokens, failed = time.perf_counter(), self._session.tokens, self._session.failed
        engine = self._session.engine
        held = engine.store.resident()
        while len(self._readings) > 1 and now - self._readings[1][0] >= self._interval_s:
            self._readings.popleft()
        since, before = self._readings[0]
        self._readings.append((now, tokens))
        self.rows.append(
            {
                "time_s": now - self._began,
                "budget_bytes": self.event.budget_bytes,
                "preference": self.event.preference,
                "quantized_experts": engine.plan.quantized_experts,
                "resident_experts": int(held.sum()),
                "bytes_fast": engine.bytes_fast,
                "tokens_per_s": (tokens - before) / (now - since),
                "reconfiguration_s": np.nan if change is None else change.settled_s,
                "freed_s": np.nan if change is None else change.freed_s,
                "failed_requests": failed - self._failed,
                "tokens": tokens,
                "rss_bytes": self._process.memory_info().rss,
            }
        )
        self._failed = failed


def replay(
    open_anew: Open, trace: pd.DataFrame, strategy: Strategy, prompts: torch.Tensor, scale: Scale
) -> pd.DataFrame:
    """Replay one trace under one strategy; return its record, a row each interval and one right after each change.

    Args:
        open_anew: opens the model.
        prompts: int64 `[count, tokens]`.

    Raises:
        UserError: a budget of the trace is too small for the model; nothing was generated then.
    """
    model = open_anew()
    memory = model.memory
    whole = memory.non_expert + math.prod(model.plan_shape) * memory.expert[FULL_BITS]
    changes = events(trace, whole, scale.duration_s)
    plans = choose_plans(changes, strategy, memory, model.plan_shape, scale.seed)
    session = Session(Engine(model, plans[0], changes[0].budget_bytes), open_anew, prompts, scale.new_tokens)
    del model  # a restart must be able to free it
    session.work()
    try:
        time.sleep(0.05 * scale.duration_s)  # the first steps fill caches and pools
        recorder = Recorder(session, changes[0], scale.interval_s)
        for event, plan in zip(changes[1:], plans[1:], strict=True):
            recorder.until(event.time_s)
            recorder.event = event
            if strategy == "adaptive":
                recorder.row(session.engine.reconfigure(plan, event.budget_bytes))
            elif strategy == "restart":
                recorder.row(session.restart(plan, event.budget_bytes))
        recorder.until(scale.duration_s)
    finally:
        session.stop()
    return pd.DataFrame(recorder.rows)


def choose_plans(
    changes: Sequence[Event], strategy: Strategy, memory: Memory, shape: tuple[int, int], seed: int
) -> list[Plan]:
    """Return the plan after each change; `static` keeps the one for the smallest budget.

    Raises:
        UserError: a budget is too small.
    """
    bits = min(bits for bits in memory.expert if bits < FULL_BITS)
    rules = PaperRules(memory, shape, random_order(*shape, seed), bits)
    plans = [rules.plan(event.budget_bytes, event.preference) for event in changes]
    if strategy == "static":
        least = min(event.budget_bytes for event in changes)
        return [rules.plan(least, "throughput")] * len(changes)
    return plans


def compare(open_anew: Open, traces: Mapping[str, pd.DataFrame], prompts: torch.Tensor, scale: Scale) -> pd.DataFrame:
    """Replay every trace under every strategy; arguments as for `replay`."""
    pairs = [(name, strategy) for name in traces for strategy in STRATEGIES]
    parts = [
        replay(open_anew, traces[name], strategy, prompts, scale).assign(trace=name, strategy=strategy)
        for name, strategy in track(pairs, "replays")
    ]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def summarize(record: pd.DataFrame) -> pd.DataFrame:
    """Return one row per trace and strategy: mean speed, worst change, failed requests, bytes beyond the budget.

    Means weigh by time; `over_budget_bytes` is the most that any row shows.
    """
    rows = []
    for (trace, strategy), part in record.groupby(["trace", "strategy"], sort=False):
        weight = part["time_s"].diff().fillna(part["time_s"].iloc[0]).to_numpy()
        first, last = part.iloc[0], part.iloc[-1]
        rows.append(
            {
                "trace": trace,
                "strategy": strategy,
                "tokens_per_s": (last["tokens"] - first["tokens"]) / (last["time_s"] - first["time_s"]),
                "quantized_mean": float(np.average(part["quantized_experts"], weights=weight)),
                "changes": int(part["reconfiguration_s"].notna().sum()),
                "reconfiguration_s_median": part["reconfiguration_s"].median(),
                "reconfiguration_s_max": part["reconfiguration_s"].max(),
                "freed_s_max": part["freed_s"].max(),
                "failed_requests": int(part["failed_requests"].sum()),
                "over_budget_bytes": int((part["bytes_fast"] - part["budget_bytes"]).max()),
            }
        )
    return pd.DataFrame(rows)
