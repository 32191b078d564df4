"""What the server is doing, as one JSON object for the budget endpoint and one for the page."""

from __future__ import annotations

import time
from typing import Any

import psutil

from lumoe.moe.engine.engine import Engine
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.scheduler import Scheduler
from lumoe.moe.serve.schemas import BudgetResponse


class Readings:
    """Things about the process that change while it runs."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.started = time.monotonic()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of this process."""
        return int(self._process.memory_info().rss)


def budget_state(engine: Engine, governor: Governor) -> BudgetResponse:
    """Return the budget and what the fast tier holds."""
    plan = engine.plan
    return BudgetResponse(
        budget_bytes=governor.budget_bytes,
        minimum_bytes=governor.minimum_bytes,
        whole_bytes=governor.whole_bytes,
        most_bytes=governor.most_bytes,
        preference=governor.default,
        planned_for=governor.preference,
        bytes_fast=engine.bytes_fast,
        quantized_experts=plan.quantized_experts,
        resident_experts=int(engine.store.resident().sum()),
        experts=plan.bits.size,
        settled=governor.settled,
    )


def page_state(
    engine: Engine, governor: Governor, metrics: Metrics, scheduler: Scheduler, readings: Readings
) -> dict[str, Any]:
    """Return what the page shows: budget, bytes per tier, every expert, speed and queue."""
    plan, held, memory = engine.plan, engine.store.resident(), governor.memory
    hits, misses = engine.store.uses()
    return {
        **budget_state(engine, governor).model_dump(),
        "bytes_non_expert": memory.non_expert,
        "bytes_slow": int(plan.expert_bytes(memory.expert)[~held].sum()),
        "bytes_cache": scheduler.pool.nbytes,
        "rss_bytes": readings.rss_bytes,
        "bits": plan.bits.tolist(),
        "resident": held.tolist(),
        "hits": hits.tolist(),
        "misses": misses.tolist(),
        "tokens_per_s": metrics.tokens_per_s(),
        "running": scheduler.running,
        "slots": len(scheduler.cache.lengths),
        "waiting": scheduler.waiting,
        "changes": governor.changes,
        "uptime_s": time.monotonic() - readings.started,
    }
