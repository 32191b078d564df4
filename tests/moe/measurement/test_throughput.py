"""Configurations, micro-benchmarks and timed runs: what they are of, not how fast this machine is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.profile import fit_line, measure_hardware
from lumoe.moe.measurement.throughput import COLUMNS, configurations, measure, measure_batches
from lumoe.moe.planning.plan import Plan

SIZES = {4: 100, 16: 350}


def test_configurations_make_quantised_experts_resident_first() -> None:
    plans = configurations((2, 4), [0, 3, 8], [0.0, 0.25, 0.5, 1.0], SIZES, 4, seed=0)
    assert [(p.quantized_experts, p.resident_experts) for p in plans] == [
        (count, resident) for count in (0, 3, 8) for resident in (0, 2, 4, 8)
    ]
    for plan in plans:
        near = int((plan.resident & plan.quantized).sum())
        assert near == min(plan.quantized_experts, plan.resident_experts)


def test_a_share_beyond_all_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.\.1"):
        configurations((2, 4), [0], [1.5], SIZES, 4, seed=0)


def test_line_through_sizes_and_times() -> None:
    latency, rate = fit_line([10, 30, 50], [2e-3 + size / 1e4 for size in (10, 30, 50)])
    assert (latency, rate) == (pytest.approx(2e-3), pytest.approx(1e4))
    # Noise can make the larger read the faster one: then there is no latency to speak of.
    assert fit_line([10, 20], [4e-3, 2e-3]) == (0.0, pytest.approx(5000))


def test_profile_has_what_the_cost_model_needs_and_measuring_fills_the_table(
    model_bf16: Path, quantized: dict[int, Path]
) -> None:
    engine = Engine.load(model_bf16, quantized[4], Plan.uniform(3, 4, resident=False))
    hardware = measure_hardware(engine, [4, 16], "here", least_s=0.001)
    assert set(hardware.expert) == {4, 16}
    assert (hardware.hidden, hardware.intermediate, hardware.layers) == (64, 128, 3)
    # The head, two norms, a router and q, k, v, o of each of three layers, and the last norm.
    assert hardware.outside == 96 * 64 + 3 * (2 * 64 + 4 * 64 + 2 * 64 * 64 + 2 * 64 * 32) + 64
    # Experts of 448 times as many weights, on the same kernels.
    assert set(hardware.large) == {4, 16}
    for bits, times in hardware.large.items():
        assert times.seconds[0] > 3 * hardware.expert[bits].seconds[0]
    plans = configurations((3, 4), [0, 12], [0.0, 1.0], engine.memory.expert, 4, seed=0)
    prompts = torch.randint(0, 96, (2, 5), generator=torch.Generator().manual_seed(0))
    table = measure(engine, plans, prompts, new_tokens=3, repeats=2, hardware=hardware)
    assert [*table.columns[: len(COLUMNS)]] == [*COLUMNS]
    assert (table["tokens_per_s_min"] <= table["tokens_per_s"]).all()
    assert (table["tokens_per_s"] <= table["tokens_per_s_max"]).all()
    assert (table["predicted_tokens_per_s"] > 0).all()
    resident = table["resident_experts"] == 12
    assert (table["misses"][resident] == 0).all()
    assert (table["hits"][~resident] == 0).all()
    # A prefill and two decode steps, three layers, two experts a token at least.
    assert (table["misses"][~resident] >= 3 * 2 * 3).all()
    assert np.array_equal(table["bytes_moved"] > 0, ~resident)


def test_the_decoder_is_whole_again_after_a_profile(model_bf16: Path) -> None:
    engine = Engine.load(model_bf16)
    expected = engine.logits([1, 2, 3])
    measure_hardware(engine, [16], "here", least_s=0.001)
    assert torch.equal(engine.logits([1, 2, 3]), expected)


def test_batches_count_every_sequence(model_bf16: Path) -> None:
    engine = Engine.load(model_bf16)
    prompts = torch.randint(0, 96, (3, 5), generator=torch.Generator().manual_seed(0))
    table = measure_batches(engine, prompts, [1, 3], new_tokens=4, repeats=2)
    assert table["batch"].tolist() == [1, 3]
    assert (table["tokens_per_s"] > 0).all()
    with pytest.raises(UserError, match="batch of 4"):
        measure_batches(engine, prompts, [4], 4, 1)
