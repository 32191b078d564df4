"""The simulation against an independent recursion, and against the closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.simulation.comparison import comparison
from lumoe.photonics.simulation.events import Job, LineBuffer, Stage, simulate


def departures(seconds: list[float], items: int, depth: int) -> float:
    """Tandem stages with FIFOs of `depth` between them: the recursion over starts and departures."""
    starts = np.zeros((items, len(seconds)))
    leaves = np.zeros((items, len(seconds)))
    for item in range(items):
        for stage, service in enumerate(seconds):
            before = leaves[item, stage - 1] if stage else 0.0
            own = leaves[item - 1, stage] if item else 0.0
            starts[item, stage] = max(before, own)
            done = starts[item, stage] + service
            # A full FIFO takes the next item only when the stage behind it has begun the item `depth` places before.
            full = stage + 1 < len(seconds) and item >= depth
            leaves[item, stage] = max(done, starts[item - depth, stage + 1]) if full else done
    return float(leaves[-1, -1])


@given(seconds=st.lists(st.integers(1, 9), min_size=1, max_size=5), items=st.integers(1, 40), depth=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_stages_with_finite_buffers_follow_the_recursion(seconds: list[int], items: int, depth: int) -> None:
    job = Job("x", tuple(Stage(f"s{n}", float(s)) for n, s in enumerate(seconds)), items)
    outcome = simulate(job, depth=depth)
    assert outcome.duration_s == pytest.approx(departures([float(s) for s in seconds], items, depth))
    assert outcome.busy_s == {f"s{n}": items * float(s) for n, s in enumerate(seconds)}


@given(seconds=st.lists(st.floats(0.1, 5), min_size=2, max_size=4), items=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_nothing_is_faster_than_its_slowest_resource(seconds: list[float], items: int) -> None:
    # The first and the last stage share a port.
    names = ["port", *(f"s{n}" for n in range(len(seconds) - 2)), "port"]
    stages = tuple(Stage(name, s) for name, s in zip(names, seconds, strict=True))
    outcome = simulate(Job("x", stages, items, preparation_s=3.0), depth=4)
    assert outcome.duration_s >= 3.0 + max(outcome.busy_s.values()) * (1 - 1e-12)
    assert outcome.duration_s <= 3.0 + sum(seconds) * items * (1 + 1e-12)


def test_a_line_buffer_that_just_fits_a_window_waits_for_it_to_move_on() -> None:
    # 4 rows of outputs, 3 of 6 input rows each: a row loads in 10 s, a row of outputs takes 12 s.
    def run(capacity: int) -> float:
        lines = LineBuffer("dram", 10.0, capacity, needed=(3, 4, 5, 6), freed=(1, 2, 3, 6))
        return simulate(Job("x", (Stage("core", 4.0),), 12, lines=lines), depth=1).duration_s

    # With room, only the first window is waited for; without, each next row loads after the window has moved on.
    assert run(6) == 3 * 10 + 4 * 12
    assert run(4) == 3 * 10 + 4 * 12
    assert run(3) == 3 * 10 + 4 * 12 + 3 * 10


def test_images_follow_one_another_without_a_gap() -> None:
    one = Job("x", (Stage("a", 2.0), Stage("b", 3.0)), 10, preparation_s=5.0)
    assert simulate(replace(one, images=4), depth=8).duration_s == 5.0 + 2.0 + 4 * 10 * 3.0


@pytest.mark.parametrize(
    ("design", "choices"),
    [
        ("pcnna", []),
        ("pcnna", ["bound_sram=0", "bound_dram=0", "bound_weight_dacs=0", "bound_settling=0"]),
        ("pcnna", ["in_time=1", "thermo_optic_settling=0.02"]),
        ("pcnna", ["adcs=16"]),
        ("winograd", ["tile=2"]),
        ("winograd", ["tile=4", "memory=0"]),
    ],
)
def test_with_roomy_buffers_the_closed_form_holds_within_one_per_cent(design: str, choices: list[str]) -> None:
    point = DesignPoint.named(design, choices=choices)
    table = comparison(load_network("alexnet"), point, depth=256, caches_kb=[math.inf])
    assert table["difference"].abs().max() < 0.01
    assert not table["refetches"].any()


def test_a_small_cache_stalls_the_layer_whose_window_just_fits() -> None:
    table = comparison(load_network("alexnet"), DesignPoint.named("pcnna"), depth=256).set_index("layer")
    # 128 kb hold 12.2 rows of conv1's input, 11 of which are its window; a window of conv2 needs 207 kb.
    assert (table["sram_kb"] == 128).all()
    assert table.loc["conv1", "difference"] > 0.05
    assert not table.loc["conv1", "refetches"]
    assert table.loc["conv2", "refetches"]


def test_each_cache_has_its_rows_and_a_total() -> None:
    point = DesignPoint.named("winograd")
    network = load_network("alexnet")
    table = comparison(network, point, depth=16, caches_kb=[64, math.inf])
    assert table["sram_kb"].tolist() == [64] * 6 + [math.inf] * 6
    assert table["layer"].tolist() == [*(layer.name for layer in network.convolutions()), "all"] * 2
    assert set(table["design"]) == {"winograd"}
    for _, rows in table.groupby("sram_kb"):
        for column in ("closed_form_s", "simulated_s", "preparation_s", "stall_s"):
            assert rows[column].iloc[:-1].sum() == pytest.approx(rows[column].iloc[-1])
    with pytest.raises(UserError, match="the cache is 0 kb, but must be positive"):
        comparison(network, point, depth=16, caches_kb=[0])


def test_a_small_cache_sends_pcnnas_partial_sums_to_dram() -> None:
    # Fast tuning and a wide cache, so that DRAM is what the sums wait for.
    point = DesignPoint.named(
        "pcnna", choices=["in_time=1", "thermo_optic_settling=0", "sram_width=1e6", "weight_dacs=1000"]
    )
    network = load_network("alexnet")
    table = comparison(network, point, depth=64).set_index("layer")
    # conv5: 169 locations of 256 sums are 692 kb of 128. Four groups a kernel: three times out and three times back.
    (conv5,) = [layer for layer in network.convolutions() if layer.name == "conv5"]
    groups = int(pcnna.wavelength_groups(convolution_shapes([conv5]), pcnna.Design(channels=39.0)).item())
    moved = 169 * 256 * 2 * (2 * groups - 2) / point.devices.si("dram_bandwidth")
    assert groups > 1
    assert table.loc["conv5", "refetches"]
    assert table.loc["conv5", "stall_s"] > 0.9 * moved


def test_buffers_must_hold_something() -> None:
    with pytest.raises(UserError, match="at least 1"):
        simulate(Job("x", (Stage("a", 1.0),), 1), depth=0)


def test_a_small_cache_sends_winograds_partial_sums_to_dram() -> None:
    point = DesignPoint.named("winograd")
    table = comparison(load_network("alexnet"), point, depth=16, caches_kb=[256]).set_index("layer")
    # A pass of conv2 keeps 16 of 96 channels of 27 x 27 bytes and 32 kernels' sums of twice that: 467 kb.
    assert table.loc["conv2", "refetches"]
    assert table.loc["conv2", "simulated_s"] > 2 * table.loc["conv2", "closed_form_s"]
    assert not table.loc["conv3", "refetches"]
