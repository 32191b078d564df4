"""The server plans as `lumoe moe plan` does: with this machine's profile and the measured sensitivities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import make_model

from lumoe.errors import UserError
from lumoe.files import write_csv, write_json
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.profile import measure_hardware
from lumoe.moe.planning.cost import Workload
from lumoe.moe.planning.inputs import Known, build_planner
from lumoe.moe.planning.placement import random_order
from lumoe.moe.planning.plan import Plan
from lumoe.moe.planning.planner import Wish
from lumoe.moe.planning.sensitivity import COLUMNS
from lumoe.moe.serve import run
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

LIMITS = Limits(slots=2, context=32)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of the model: a profile, and sensitivities that fall from the first expert to the last."""
    found = tmp_path_factory.mktemp("measurements")
    engine = Engine.load(model)
    write_json(found / "machine.json", measure_hardware(engine, [8, 16], "here", 0.01).model_dump(mode="json"))
    layers, experts = engine.plan.shape
    rows = [
        (layer, expert, 8, 1.0 / (1 + layer * experts + expert), 100) for layer, expert in np.ndindex(layers, experts)
    ]
    write_csv(found / "sensitivity.csv", pd.DataFrame(rows, columns=list(COLUMNS)), COLUMNS)
    return found


def test_a_measured_model_is_planned_by_predicted_speed_and_sensitivity(model: Path, folder: Path) -> None:
    server = load(Setup(model, measurements=folder), LIMITS)
    try:
        governor, shape = server.governor, server.engine.decoder.architecture
        known = Known.measured(str(model), folder)
        planner = build_planner(shape, server.engine.memory, known, Workload(), 8)
        for share in (0.55, 0.8, 1.0):
            budget = round(share * governor.whole_bytes)
            for preference in ("throughput", "quality"):
                left = shape.kv_bytes(LIMITS.context)
                expected = planner.propose(Wish(budget, preference, kv_bytes=left))
                found = governor.propose(budget, preference)
                assert found.plan == expected.plan
                assert found.prediction == expected.prediction is not None
        total = shape.experts
        assert governor.planner.rules.order.tolist() == list(range(total))[::-1], "the least sensitive give up first"
    finally:
        governor.close()


def test_without_measurements_the_papers_rules_and_a_random_order_decide(model: Path, tmp_path: Path) -> None:
    server = load(Setup(model, seed=3, measurements=tmp_path), LIMITS)
    try:
        rules = server.governor.planner.rules
        assert server.governor.planner.costs is None
        assert rules.order.tolist() == random_order(*rules.shape, 3).tolist()
    finally:
        server.governor.close()


def test_a_profile_of_another_model_is_refused_where_it_was_asked_for(folder: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", intermediate_size=192)
    with pytest.raises(UserError, match="was measured on a model of widths"):
        load(Setup(other, measurements=folder), LIMITS)


@pytest.mark.parametrize(("free_mb", "expected_mb"), [(10_000, None), (0.5, 0.5)])
def test_without_a_budget_the_server_takes_what_memory_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mb: float, expected_mb: float | None
) -> None:
    engine = Engine.load(model, plan=Plan.uniform(3, 4, resident=False))
    free = round(free_mb * 1e6) + run.SPARE_BYTES - engine.bytes_fast
    monkeypatch.setattr(run, "available_bytes", lambda: free)
    server = load(Setup(model, measurements=tmp_path), LIMITS)
    try:
        governor = server.governor
        # A block of 16 tokens: keys and values of 3 layers with 2 heads of 16 values of 2 bytes are two pages.
        assert 4096 < 16 * 2 * 3 * 2 * 16 * 2 <= 8192
        keys_and_values = 8192 * LIMITS.slots * LIMITS.context // 16
        most = engine.model.whole_bytes + keys_and_values
        assert governor.most_bytes == most
        assert governor.budget_bytes == (most if expected_mb is None else round(expected_mb * 1e6))
    finally:
        server.governor.close()


def test_too_little_memory_for_any_plan_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="memory: 0 bytes are free for the model"):
        load(Setup(model, measurements=tmp_path), LIMITS)


def test_a_budget_beyond_memory_is_warned_of(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "available_bytes", lambda: 1000)
    load(Setup(model, budget="100%", measurements=tmp_path), LIMITS).governor.close()
    assert "memory holds no more than" in caplog.text


def test_perplexities_of_other_precisions_leave_the_quality_unknown(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_bytes((folder / "machine.json").read_bytes())
    (tmp_path / "perplexity.csv").write_text("corpus,bits,quantized_experts,perplexity\na,4,0,3\na,4,8,4\n")
    server = load(Setup(model, measurements=tmp_path), LIMITS)
    try:
        governor = server.governor
        proposal = governor.propose(round(0.8 * governor.whole_bytes), "quality")
        assert proposal.plan.quantized_experts == 0
        assert "no expert quantised, for what 8 bits cost in quality is not known" in proposal.why
        fast = governor.propose(round(0.7 * governor.whole_bytes), "throughput")
        assert fast.plan.quantized_experts > 0
        assert np.isnan(fast.increase)
        assert governor.planner.basis == f"{tmp_path / 'perplexity.csv'} has 4 bits, not 8"
    finally:
        governor.close()
