"""What the server counts, in the form that Prometheus reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from math import ceil

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lumoe.moe.engine.loader import PlanChange
from lumoe.moe.serve.generation import Times
from lumoe.moe.serve.governor import Governor

RATE_WINDOW_S = 5.0
FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
CHANGE_S = (0.001, 0.01, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Metrics:
    """Counts what happens to sequences; reads the engine's own counters when asked."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._tokens = Counter("lumoe_tokens", "Tokens handled", ["kind"], registry=registry)
        self._prompt, self._completion = self._tokens.labels("prompt"), self._tokens.labels("completion")
        self._outcomes = Counter("lumoe_sequences", "Sequences that ended", ["outcome"], registry=registry)
        self._requests = Counter("lumoe_http_responses", "HTTP responses", ["status"], registry=registry)
        self._first = Histogram(
            "lumoe_time_to_first_token_seconds",
            "From arrival to the first token",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "lumoe_time_per_output_token_seconds",
            "Between two tokens of a sequence",
            buckets=PER_TOKEN_S,
            registry=registry,
        )
        self._waiting = Gauge("lumoe_queue_sequences", "Sequences that wait for a slot", registry=registry)
        self._running = Gauge("lumoe_running_sequences", "Sequences that have a slot", registry=registry)
        self._pauses = Counter(
            "lumoe_paused_sequences", "Sequences that gave up their keys and values for others", registry=registry
        )
        self._changes = Histogram(
            "lumoe_reconfiguration_seconds",
            "From a change of plan to its last expert",
            buckets=CHANGE_S,
            registry=registry,
        )
        self._freed = Histogram(
            "lumoe_reconfiguration_freed_seconds", "From a change of plan to its freed memory", buckets=CHANGE_S,
            registry=registry,
        )  # fmt: skip
        self._alone: deque[float] = deque(maxlen=64)
        self._recent: deque[tuple[float, int]] = deque()
        self._ends: deque[float] = deque(maxlen=32)
        Gauge("lumoe_tokens_per_second", "Tokens drawn, mean of the last seconds", registry=registry).set_function(
            self.tokens_per_s
        )
        ProcessCollector(registry=registry)

    def watch(self, governor: Governor) -> None:
        """Report what the engine of `governor` holds and does, too."""
        self.registry.register(EngineCollector(governor))

    def prompt_tokens(self, count: int) -> None:
        """Count prompt tokens that were fed."""
        self._prompt.inc(count)

    def token(self, times: Times, before: float | None) -> None:
        """Count a drawn token; `before` is when the one before it was drawn."""
        self._completion.inc()
        now = times.last_token or 0.0
        if before is None:
            self._first.observe(now - times.arrived)
        else:
            self._per_token.observe(now - before)
        if self._recent and now - self._recent[-1][0] < 0.05:
            self._recent[-1] = (self._recent[-1][0], self._recent[-1][1] + 1)
        else:
            self._recent.append((now, 1))
            while now - self._recent[0][0] > RATE_WINDOW_S:
                self._recent.popleft()

    def stepped(self, seconds: float, sequences: int) -> None:
        """Note how long a decode step took."""
        if sequences == 1:
            self._alone.append(seconds)

    def decode_s(self) -> float | None:
        """Median time of the last decode steps of one sequence alone, under the plan in force; None without any."""
        found = sorted(self._alone)
        return found[len(found) // 2] if found else None

    def planned(self) -> None:
        """Note that another plan is in force: what was measured before is of the one before."""
        self._alone.clear()

    def finished(self, outcome: str) -> None:
        """Count a sequence that ended: stop, length, cancelled or failed."""
        self._outcomes.labels(outcome).inc()
        self._ends.append(time.perf_counter())

    def paused(self) -> None:
        """Count a sequence that waits without its keys and values."""
        self._pauses.inc()

    def responded(self, status: int) -> None:
        """Count an HTTP response."""
        self._requests.labels(str(status)).inc()

    def sample(self, running: int, waiting: int) -> None:
        """Note how many sequences run and wait."""
        self._running.set(running)
        self._waiting.set(waiting)

    def changed(self, change: PlanChange) -> None:
        """Note a finished change of plan."""
        self._changes.observe(change.loaded_s)
        self._freed.observe(change.freed_s)

    def tokens_per_s(self) -> float:
        """Tokens drawn per second over the last few seconds."""
        since = time.perf_counter() - RATE_WINDOW_S
        return sum(count for at, count in list(self._recent) if at >= since) / RATE_WINDOW_S

    def retry_after_s(self) -> int:
        """Seconds until a place in the queue is likely free, at the rate at which sequences ended lately."""
        if len(self._ends) < 2:
            return 1
        each = (time.perf_counter() - self._ends[0]) / len(self._ends)
        return min(max(ceil(each), 1), 60)

    def text(self) -> bytes:
        """Return all of it in the Prometheus text format."""
        return generate_latest(self.registry)


class CountResponses:
    """ASGI middleware that counts responses by status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responded(message["status"])
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


class EngineCollector(Collector):
    """The counters of the engine and of its keys and values at the moment of the scrape."""

    def __init__(self, governor: Governor) -> None:
        self._governor, self._sizes = governor, governor.memory.expert

    def collect(self) -> Iterable[Metric]:
        engine, pool = self._governor.engine, self._governor.pool
        values, plan, held = engine.metrics(), engine.plan, engine.store.resident()
        tiers = GaugeMetricFamily("lumoe_tier_bytes", "Bytes per tier", labels=["tier"])
        tiers.add_metric(["fast"], engine.bytes_fast)
        tiers.add_metric(["slow"], int(plan.expert_bytes(self._sizes)[~held].sum()))
        yield tiers
        yield GaugeMetricFamily(
            "lumoe_budget_bytes",
            "Byte budget of the fast tier",
            value=self._governor.budget_bytes,
        )
        kept = GaugeMetricFamily("lumoe_kv_bytes", "Bytes of keys and values", labels=["use"])
        idle = pool.idle_blocks * pool.cache.block_bytes
        kept.add_metric(["sequences"], pool.nbytes - idle)
        kept.add_metric(["prefixes"], idle)
        kept.add_metric(["limit"], pool.cache.limit * pool.cache.block_bytes)
        yield kept
        prompts = CounterMetricFamily(
            "lumoe_prompt_tokens", "Prompt tokens whose keys and values were there, and others", labels=["found"]
        )
        prompts.add_metric(["hit"], pool.reused_tokens)
        prompts.add_metric(["miss"], pool.prompt_tokens - pool.reused_tokens)
        yield prompts
        uses = CounterMetricFamily("lumoe_expert_uses", "Uses of an expert by a step", labels=["found"])
        uses.add_metric(["hit"], values["hits"])
        uses.add_metric(["miss"], values["misses"])
        yield uses
        guesses = CounterMetricFamily(
            "lumoe_expert_guesses", "Experts read before they were asked for", labels=["asked"]
        )
        guesses.add_metric(["yes"], values["guessed_right"])
        guesses.add_metric(["no"], values["guessed"] - values["guessed_right"])
        yield guesses
        yield CounterMetricFamily("lumoe_moved_bytes", "Bytes read from the slow tier", value=values["bytes_moved"])
        experts = GaugeMetricFamily("lumoe_plan_experts", "Experts of the plan", labels=["bits", "tier"])
        for bits in np.unique(plan.bits).tolist():
            here = plan.bits == bits
            experts.add_metric([str(bits), "fast"], int((here & held).sum()))
            experts.add_metric([str(bits), "slow"], int((here & ~held).sum()))
        yield experts
