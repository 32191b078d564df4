"""What the server is doing, as one JSON object for the page."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import psutil

from lumoe.moe.serve.budget import budget_state
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.scheduler import Scheduler


class Readings:
    """Things about the process that change while it runs."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.started = time.monotonic()

    @property
    def rss_bytes(self) -> int:
        """Resident memory of this process."""
        return int(self._process.memory_info().rss)


def page_state(governor: Governor, metrics: Metrics, scheduler: Scheduler, readings: Readings) -> dict[str, Any]:
    """Return what the page shows: budget, bytes per tier, every expert, speed and queue."""
    engine, pool = governor.engine, governor.pool
    plan, held, memory = engine.plan, engine.store.resident(), governor.memory
    hits, misses = engine.store.uses()
    counters = engine.store.counters
    return {
        **budget_state(governor, metrics).model_dump(),
        "bytes_non_expert": memory.non_expert,
        "bytes_slow": int(plan.expert_bytes(memory.expert)[~held].sum()),
        "bytes_idle_kv": pool.idle_blocks * pool.cache.block_bytes,
        "prompt_tokens": pool.prompt_tokens,
        "reused_tokens": pool.reused_tokens,
        "rss_bytes": readings.rss_bytes,
        "bits": plan.bits.tolist(),
        "resident": held.tolist(),
        "hits": hits.tolist(),
        "misses": misses.tolist(),
        "caching": asdict(engine.store.caching),
        "guessed": counters.guessed,
        "guessed_right": counters.guessed_right,
        "tokens_per_s": metrics.tokens_per_s(),
        "running": scheduler.running,
        "slots": len(scheduler.cache.lengths),
        "waiting": scheduler.waiting,
        "changes": governor.changes,
        "uptime_s": time.monotonic() - readings.started,
    }
