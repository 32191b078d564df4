"""Timed generations of every case, each with its traffic, its bytes and what the cost model said."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.true_scale import machine
from benchmarks.true_scale.cases import Case, plan_of
from benchmarks.true_scale.model import BITS
from benchmarks.true_scale.routing import DrawnRouting, expected_misses, shares_of
from benchmarks.true_scale.table import Table
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, OpenedModel
from lumoe.moe.model.cuda_graphs import recorder_for
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import DeviceTier
from lumoe.moe.offload.host_experts import DeviceExperts
from lumoe.moe.offload.miss_cost import MissCosts, split_misses
from lumoe.moe.planning.cost import CostModel
from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.plan import FULL_BITS, Plan

KEY = ("scheme", "routing", "batch", "point", "quantized_experts")
COLUMNS = (
    *KEY, "resident_experts", "budget_bytes", "prompt_tokens", "new_tokens",
    "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "predicted_tokens_per_s", "floor_tokens_per_s",
    "first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s",
    "hits", "misses", "misses_expected", "misses_in_place", "bytes_moved",
    "bytes_fast", "allocated_bytes", "reserved_bytes", "repeats", "seed", *machine.COLUMNS, "basis",
)  # fmt: skip
# A case is repeated while it stays below this; the slowest are measured once.
PATIENCE_S = 12.0


@dataclass(frozen=True)
class Scale:
    """How cases are measured."""

    prompt_tokens: int = 16
    new_tokens: int = 16
    repeats: int = 3
    seed: int = 0


@dataclass
class Timing:
    """One generation."""

    total_s: float
    first_token_s: float
    counters: dict[str, int]
    misses_drawn: int


class Bench:
    """The model on a device, measured case by case."""

    def __init__(
        self,
        decoder: StaticDecoder,
        experts: DeviceExperts,
        profiles: dict[str, Hardware],
        memory_rate: float,
        about: dict[str, str],
        scale: Scale,
    ) -> None:
        """Take a model and its device's micro-benchmarks.

        Args:
            memory_rate: bytes/s at which the device's memory is read.
        """
        self.decoder, self.experts, self.profiles, self.about, self.scale = decoder, experts, profiles, about, scale
        self.memory_rate = memory_rate
        self.shape = decoder.architecture
        self.sizes = {bits: experts.nbytes(bits) for bits in (BITS, FULL_BITS)}
        # Recorded steps belong to a cache and know nothing of plans: one recording serves every case of a batch.
        self._caches: dict[tuple[bool, int], Any] = {}

    def run(self, todo: Sequence[Case], table: Table, left_s: Callable[[], float], say: Callable[[str], None]) -> int:
        """Measure cases until the time is up; return how many are left."""
        longest = 0.0
        for number, case in enumerate(todo):
            if left_s() < 1.5 * longest + 5:
                return len(todo) - number
            began = time.perf_counter()
            row = self.measure(case)
            table.add(row)
            longest = max(longest, time.perf_counter() - began)
            speed, predicted = row["tokens_per_s"], row["predicted_tokens_per_s"]
            say(f"{name_of(case)}: {speed:.3g} tokens/s (predicted {predicted:.3g}), {row['misses']:.0f} misses")
        return 0

    def measure(self, case: Case) -> dict[str, Any]:
        """Return the case's row.

        Raises:
            UserError: the case does not fit its own budget.
        """
        shape, top_k = self.shape.plan_shape, self.shape.num_experts_per_tok
        shares = shares_of(case.routing, shape, top_k, self.scale.seed)
        plan, budget = plan_of(case, shape, self.sizes, self.decoder.nbytes, shares, self.scale.seed)
        routing = DrawnRouting(shares, top_k, self.decoder.device)
        self._empty()
        engine = self._engine(case, plan, budget, routing)
        if not np.array_equal(engine.store.resident(), plan.resident):
            raise RuntimeError(f"{name_of(case)}: the device does not hold what the plan says")
        timings = self._time(engine, case, routing)
        row = self._row(case, plan, budget, shares, engine, timings)
        self.decoder.noise = None
        self.decoder.attach(None)  # lets go of the residents
        return row

    def _engine(self, case: Case, plan: Plan, budget: int, routing: DrawnRouting) -> Engine:
        paper = case.scheme == "paper"
        self.decoder.recorder = None if paper else recorder_for(self.decoder.device)
        self.decoder.noise = routing
        costs = MissCosts(self.profiles["recorded"], self.sizes) if case.scheme == "engine" else None
        if self.decoder.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.decoder.device)
        tier = DeviceTier(self.experts, overlapped=not paper, costs=costs)
        config = EngineConfig(swap_buffers=case.swap_buffers)
        return Engine(OpenedModel(self.decoder, self.experts, tier, config), plan, budget)

    def _time(self, engine: Engine, case: Case, routing: DrawnRouting) -> list[Timing]:
        scale, batch, recorded = self.scale, case.batch, self.decoder.recorder is not None
        if (recorded, batch) not in self._caches:
            self._caches[recorded, batch] = engine.cache(batch, scale.prompt_tokens + scale.new_tokens)
        cache = self._caches[recorded, batch]
        generator = torch.Generator().manual_seed(scale.seed)
        prompts = torch.randint(0, self.shape.vocab_size, (batch, scale.prompt_tokens), generator=generator)
        steps = [batch * scale.prompt_tokens] + [batch] * (scale.new_tokens - 1)
        routing.restart([scale.seed, 0], steps[:3])
        generate(engine, cache, prompts, min(3, scale.new_tokens), routing)  # warms up and records
        timings: list[Timing] = []
        began = time.perf_counter()
        while not timings or (len(timings) < scale.repeats and time.perf_counter() - began < PATIENCE_S):
            # The same draws for every case: schemes and budgets see one routing.
            routing.restart([scale.seed, len(timings) + 1], steps)
            timings.append(generate(engine, cache, prompts, scale.new_tokens, routing))
            found, drawn = timings[-1].counters["misses"], timings[-1].misses_drawn
            if abs(found - drawn) > 0.001 * max(drawn, 1):
                raise RuntimeError(f"{found} misses were counted where the drawn routing has {drawn}")
        return timings

    def _row(
        self, case: Case, plan: Plan, budget: int, shares: np.ndarray, engine: Engine, timings: list[Timing]
    ) -> dict[str, Any]:
        scale, batch = self.scale, case.batch
        made = batch * scale.new_tokens
        speeds = [made / timing.total_s for timing in timings]
        first = float(np.median([timing.first_token_s for timing in timings]))
        rest = float(np.median([timing.total_s - timing.first_token_s for timing in timings]))
        steps = [batch * scale.prompt_tokens] + [batch] * (scale.new_tokens - 1)
        mean = {name: np.mean([timing.counters[name] for timing in timings]) for name in timings[0].counters}
        cuda = self.decoder.device.type == "cuda"
        return {
            **vars(case),
            "resident_experts": plan.resident_experts,
            "budget_bytes": budget,
            "prompt_tokens": scale.prompt_tokens,
            "new_tokens": scale.new_tokens,
            "tokens_per_s": float(np.median(speeds)),
            "tokens_per_s_min": min(speeds),
            "tokens_per_s_max": max(speeds),
            "predicted_tokens_per_s": self.predict(case, plan, shares),
            "floor_tokens_per_s": self.floor(plan, shares, batch) if plan.resident.all() else np.nan,
            "first_token_s": first,
            "prefill_tokens_per_s": batch * scale.prompt_tokens / first,
            "decode_tokens_per_s": batch * (scale.new_tokens - 1) / rest if scale.new_tokens > 1 else np.nan,
            **mean,
            "misses_expected": expected_misses(shares, plan.resident, steps),
            "bytes_fast": engine.bytes_fast,
            "allocated_bytes": torch.cuda.max_memory_allocated(self.decoder.device) if cuda else np.nan,
            "reserved_bytes": torch.cuda.max_memory_reserved(self.decoder.device) if cuda else np.nan,
            "repeats": len(timings),
            "seed": scale.seed,
            **self.about,
            "basis": "measured",
        }

    def predict(self, case: Case, plan: Plan, shares: np.ndarray) -> float:
        """Return the cost model's speed; NaN where a miss may compute on the host, which the model does not cover."""
        hardware = self.profiles["eager" if case.scheme == "paper" else "recorded"]
        missed = set(plan.bits[~plan.resident].tolist())
        costs = MissCosts(hardware, self.sizes)
        if case.scheme == "engine" and any(any(split_misses([bits] * 2, [1, 1], costs)) for bits in missed):
            return float("nan")
        times = CostModel(hardware, self.shape, self.sizes, frequencies=shares)
        first, later = (
            times.step_seconds(plan, tokens) for tokens in (case.batch * self.scale.prompt_tokens, case.batch)
        )
        return case.batch * self.scale.new_tokens / (first + (self.scale.new_tokens - 1) * later)

    def floor(self, plan: Plan, shares: np.ndarray, batch: int) -> float:
        """Return the decoding speed at which the device's memory could just be read as fast as weights are used."""
        used = 1 - (1 - shares) ** batch
        read = self.decoder.nbytes + float((used * plan.expert_bytes(self.sizes)).sum())
        return batch * self.memory_rate / read

    def _empty(self) -> None:
        if self.decoder.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def generate(engine: Engine, cache: Any, prompts: torch.Tensor, new_tokens: int, routing: DrawnRouting) -> Timing:
    """Generate once and return times and traffic."""
    names = ("hits", "misses", "misses_in_place", "bytes_moved")
    cache.lengths[:] = [0] * len(cache.lengths)
    before = engine.metrics()
    engine.finish()
    began = time.perf_counter()
    token = engine.step(prompts, cache)[:, -1].argmax(-1, keepdim=True)
    engine.finish()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = engine.step(token, cache)[:, -1].argmax(-1, keepdim=True)
    engine.finish()
    end = time.perf_counter()
    after = engine.metrics()
    counters = {name: after[name] - before[name] for name in names}
    return Timing(end - began, first - began, counters, routing.misses(engine.plan.resident))


def name_of(case: Case) -> str:
    point = case.point if not case.point.isdigit() else f"{int(case.point) / 1e9:.2f} GB"
    return f"{case.scheme}, {case.routing}, batch {case.batch}, {point}, {case.quantized_experts} at {BITS} bits"
