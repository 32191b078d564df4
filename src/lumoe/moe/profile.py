"""Micro-benchmarks of this machine: the few numbers from which the cost model predicts tokens per second.

Nothing here times a generation: what the model predicts from these numbers is a prediction.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lumoe.moe.engine import Engine
from lumoe.moe.experts import Expert
from lumoe.moe.hardware import Hardware, Seconds, Sourced, Transfer
from lumoe.moe.plan import Plan

TOKENS = (1, 2, 4, 8, 16)
STEP_TOKENS = (1, 4, 16, 64)
# Experts that are timed in turn: together far larger than one, so that a cache does not hold the one just used.
_EXPERTS_IN_TURN = 4
_BY = "measured by `lumoe moe calibrate`"


def measure_hardware(
    engine: Engine,
    bits: Sequence[int],
    name: str,
    least_s: float = 0.3,
    tokens: Sequence[int] = TOKENS,
    step_tokens: Sequence[int] = STEP_TOKENS,
) -> Hardware:
    """Time experts, reads of missed experts, and everything outside the experts, each for at least `least_s` seconds.

    Args:
        engine: gives the widths, the type of the activations and the slow tier; its plan is changed.
        bits: precisions that experts are timed at.
        tokens, step_tokens: numbers of tokens that experts, and everything outside the experts, are timed over.
    """
    source, shape = engine.store.source, engine.decoder.architecture
    expert = {value: _seconds(tokens, time_experts(engine, value, tokens, least_s)) for value in sorted(bits)}
    sizes, reads = [], []
    for value in sorted(bits):
        sizes.append(source.nbytes(value))
        reads.append(time_misses(engine, value, least_s))
    latency, rate = fit_line(sizes, reads)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(
        name=name,
        device=describe_device(),
        fast_bytes=Sourced(value=memory, source="physical memory of this machine", confidence="measured"),
        transfer=Transfer(
            latency_s=Sourced(value=latency, source=_BY, confidence="measured"),
            bytes_per_s=Sourced(value=rate, source=_BY, confidence="measured"),
            overlapped=True,
        ),
        dense=_seconds(step_tokens, time_dense(engine, step_tokens, least_s)),
        expert=expert,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
    )


@torch.inference_mode()
def time_experts(engine: Engine, bits: int, tokens: Sequence[int], least_s: float) -> list[float]:
    """Return the median seconds of one expert at `bits` for each number of tokens."""
    shape, source, tier = engine.decoder.architecture, engine.store.source, engine.store.tier
    experts = []
    for index in range(min(_EXPERTS_IN_TURN, shape.num_local_experts)):
        record = source.record(0, index, bits)
        room = tier.allocate(record.nbytes)
        tier.submit(room, tier.bring, room, record).result()
        experts.append(source.build(0, index, bits, room.tensors(record)))
    results = []
    for count in tokens:
        hidden = torch.randn(count, shape.hidden_size).to(engine.device, engine.decoder.dtype)

        def run(hidden: torch.Tensor = hidden) -> None:
            for expert in experts:
                expert(hidden)
            engine.finish()

        results.append(median_seconds(run, least_s) / len(experts))
    return results


def time_misses(engine: Engine, bits: int, least_s: float) -> float:
    """Return the median seconds of bringing in one missed expert, with nothing to compute beside it."""
    layers, experts = engine.plan.shape
    engine.reconfigure(Plan.uniform(layers, experts, bits, resident=False))
    places = [(layer, expert) for layer in range(layers) for expert in range(experts)][: 4 * _EXPERTS_IN_TURN]

    def run() -> None:
        for layer, expert in places:
            for _ in engine.store.fetch(layer, [expert]):
                pass

    run()  # the first reading also lays out and checks
    return median_seconds(run, least_s) / len(places)


def time_dense(engine: Engine, tokens: Sequence[int], least_s: float) -> list[float]:
    """Return the median seconds of a forward pass whose experts return their input, for each number of tokens."""
    store = engine.store
    engine.decoder.attach(_NoExperts())  # type: ignore[arg-type]
    try:
        results = []
        for count in tokens:
            ids = torch.zeros((1, count), dtype=torch.int64)
            cache = engine.cache(1, count)

            def run(ids: torch.Tensor = ids, cache: object = cache) -> None:
                cache.lengths[0] = 0  # type: ignore[attr-defined]
                engine.step(ids, cache)  # type: ignore[arg-type]
                engine.finish()

            results.append(median_seconds(run, least_s))
        return results
    finally:
        engine.decoder.attach(store)


class _NoExperts:
    """Stands for the store: every expert is there and does nothing."""

    def fetch(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Expert]]:
        return ((index, _same) for index in wanted)


def _same(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def median_seconds(run: Callable[[], object], least_s: float, least_calls: int = 5) -> float:
    """Call `run` for at least `least_s` seconds and `least_calls` times; return the median of its times."""
    run()
    times: list[float] = []
    while sum(times) < least_s or len(times) < least_calls:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return latency in s and rate in bytes/s of `seconds = latency + size / rate`, least squares, neither negative."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds)
    slope, latency = np.polyfit(x, y, 1) if len({*sizes}) > 1 else (0.0, 0.0)
    if slope <= 0 or latency < 0:
        return 0.0, float(x.sum() / y.sum())
    return float(latency), float(1 / slope)


def describe_device() -> str:
    """Name the processor and the threads that torch uses."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {torch.get_num_threads()} threads"


def _seconds(tokens: Sequence[int], seconds: Sequence[float]) -> Seconds:
    return Seconds(tokens=list(tokens), seconds=list(seconds), source=_BY, confidence="measured")
