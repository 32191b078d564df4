"""Measured tokens per second of configurations, with the cost model's prediction beside each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.profile import describe_device
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.placement import fill, quantize_first, random_order
from lumoe.moe.planning.plan import Plan
from lumoe.progress import track

COLUMNS = (
    "quantized_experts",
    "resident_experts",
    "budget_bytes",
    "prompt_tokens",
    "new_tokens",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "predicted_tokens_per_s",
    "repeats",
    "device",
)


@dataclass(frozen=True)
class Run:
    """One timed generation."""

    seconds: float
    first_token_s: float
    hits: int
    misses: int
    bytes_moved: int


def configurations(
    shape: tuple[int, int],
    counts: Sequence[int],
    shares: Sequence[float],
    sizes: Mapping[int, int],
    bits: int,
    seed: int,
) -> list[Plan]:
    """Return a plan for every count of quantised experts and share of resident ones.

    Which experts are quantised is random (`seed`); quantised ones become resident first, as in arXiv 2407.14417.
    """
    total = shape[0] * shape[1]
    order = random_order(*shape, seed)
    plans = []
    for count in counts:
        chosen = quantize_first(order, count, shape, bits)
        every = np.sort(Plan(chosen, np.ones(shape, dtype=bool)).expert_bytes(sizes).ravel())
        for share in shares:
            if not 0 <= share <= 1:
                raise UserError(f"the share of resident experts must lie in 0..1, not {share}")
            room = int(every[: round(share * total)].sum())
            plans.append(Plan(chosen, fill(chosen, room, sizes)))
    return plans


def that_fit(engine: Engine, plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans whose residents and swap buffers the engine's fast tier can hold, in their order.

    Raises:
        UserError: none does.
    """
    most = engine.model.most_bytes
    if most is None:
        return list(plans)
    found = [plan for plan in plans if engine.model.bytes_needed(plan) <= most]
    if not found:
        raise UserError(f"none of {len(plans)} configurations fits the {most} bytes that the device has for weights")
    return found


def time_generation(engine: Engine, cache: Any, prompts: torch.Tensor, new_tokens: int) -> Run:
    """Generate once and return its time and traffic.

    Args:
        cache: of the engine, for as many sequences; what it holds is overwritten. A device records its steps over it.
        prompts: int64 `[sequences, tokens]`.
    """
    before = engine.metrics()
    cache.lengths[:] = [0] * len(prompts)
    began = time.perf_counter()
    token = engine.step(prompts, cache)[:, -1].argmax(-1, keepdim=True)
    engine.finish()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = engine.step(token, cache)[:, -1].argmax(-1, keepdim=True)
    engine.finish()
    end = time.perf_counter()
    after = engine.metrics()
    return Run(end - began, first - began, *(after[key] - before[key] for key in ("hits", "misses", "bytes_moved")))


def measure(
    engine: Engine,
    plans: Sequence[Plan],
    prompts: torch.Tensor,
    new_tokens: int,
    repeats: int,
    hardware: Hardware,
    frequencies: ArrayLike | None = None,
) -> pd.DataFrame:
    """Time every plan on the same prompts and predict it.

    Rounds go through all plans in turn, so that a disturbance of the machine meets all of them alike.

    Args:
        prompts: int64 `[prompts, tokens]`; repeat `r` uses prompt `r` modulo their number.
        frequencies: `[L, E]`, how often a token is routed to each expert, for the prediction.

    Returns:
        COLUMNS and the traffic; speed is new tokens over the time of prefill and decode, median over repeats.
    """
    runs: list[list[Run]] = [[] for _ in plans]
    fast = [0] * len(plans)
    cache = engine.cache(1, prompts.shape[1] + new_tokens)
    for repeat in track(range(repeats + 1), "rounds of all configurations"):
        prompt = prompts[repeat % len(prompts)].unsqueeze(0)
        for index, plan in enumerate(plans):
            engine.reconfigure(plan)
            if not np.array_equal(engine.store.resident(), plan.resident):
                raise RuntimeError("the store does not hold what the plan says")
            fast[index] = engine.bytes_fast
            time_generation(engine, cache, prompt, 2)  # the first reading lays experts out
            run = time_generation(engine, cache, prompt, new_tokens)
            if repeat:  # the first round warms up
                runs[index].append(run)
    workload = Workload(prompts.shape[1], new_tokens)
    costs = CostModel(hardware, engine.decoder.architecture, engine.memory.expert, workload, frequencies)
    rows = []
    for plan, done, used in zip(plans, runs, fast, strict=True):
        speeds = [new_tokens / run.seconds for run in done]
        predicted = costs.predict(plan)
        rows.append(
            {
                "quantized_experts": plan.quantized_experts,
                "resident_experts": plan.resident_experts,
                "budget_bytes": used,
                "prompt_tokens": prompts.shape[1],
                "new_tokens": new_tokens,
                "tokens_per_s": np.median(speeds),
                "tokens_per_s_min": min(speeds),
                "tokens_per_s_max": max(speeds),
                "predicted_tokens_per_s": predicted.tokens_per_s,
                "repeats": repeats,
                "device": describe_device(engine.device),
                "first_token_s": np.median([run.first_token_s for run in done]),
                "hits": np.mean([run.hits for run in done]),
                "misses": np.mean([run.misses for run in done]),
                "bytes_moved": np.mean([run.bytes_moved for run in done]),
                "basis": "measured",
            }
        )
    return pd.DataFrame(rows)


BATCH_COLUMNS = (
    "batch",
    "quantized_experts",
    "prompt_tokens",
    "new_tokens",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "decode_tokens_per_s",
    "repeats",
    "device",
    "basis",
)


def measure_precisions(
    engine: Engine,
    precisions: Sequence[int],
    prompts: torch.Tensor,
    batches: Sequence[int],
    new_tokens: int,
    repeats: int,
    warn: Callable[[str], None],
) -> pd.DataFrame:
    """Return `measure_batches` with all experts resident, at each of some precisions.

    Args:
        warn: told of each precision that the device cannot hold.

    Raises:
        UserError: it holds none.
    """
    layers, experts = engine.plan.shape
    tables = []
    for bits in precisions:
        engine.reconfigure(Plan.uniform(layers, experts, bits))
        if engine.plan.resident.all():
            tables.append(measure_batches(engine, prompts, batches, new_tokens, repeats))
        else:
            warn(f"not all experts at {bits} bits fit the device; left out")
    if not tables:
        raise UserError(f"{engine.device}: not even all experts at {min(precisions)} bits fit this device")
    return pd.concat(tables)


def measure_batches(
    engine: Engine, prompts: torch.Tensor, batches: Sequence[int], new_tokens: int, repeats: int
) -> pd.DataFrame:
    """Time sequences that decode together, everything as the engine's plan has it.

    Args:
        prompts: int64 `[largest batch, tokens]`; a batch takes the first of them.

    Returns:
        BATCH_COLUMNS; `tokens_per_s` counts the new tokens of all sequences over prefill and decode.
    """
    rows = []
    for batch in track(batches, "batch sizes"):
        if not 1 <= batch <= len(prompts):
            raise UserError(f"a batch of {batch} needs as many prompts; there are {len(prompts)}")
        totals, decodes = [], []
        cache = engine.cache(batch, prompts.shape[1] + new_tokens)
        for repeat in range(repeats + 1):
            run = time_generation(engine, cache, prompts[:batch], new_tokens)
            if repeat:  # the first round warms up
                totals.append(batch * new_tokens / run.seconds)
                decodes.append(
                    batch * (new_tokens - 1) / (run.seconds - run.first_token_s) if new_tokens > 1 else np.nan
                )
        rows.append(
            {
                "batch": batch,
                "quantized_experts": engine.plan.quantized_experts,
                "prompt_tokens": prompts.shape[1],
                "new_tokens": new_tokens,
                "tokens_per_s": np.median(totals),
                "tokens_per_s_min": min(totals),
                "tokens_per_s_max": max(totals),
                "decode_tokens_per_s": np.median(decodes),
                "repeats": repeats,
                "device": describe_device(engine.device),
                "basis": "measured",
            }
        )
    return pd.DataFrame(rows, columns=list(BATCH_COLUMNS))
