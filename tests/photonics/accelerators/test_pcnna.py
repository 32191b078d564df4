"""PCNNA's closed form against the table that its equations give, and its bounds one by one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.layers import Layer
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.batches import batch_table
from lumoe.photonics.studies.pcnna import COLUMNS, layer_table, summary_table
from lumoe.photonics.studies.waterfall import Remedies, waterfall

VALUES = load_devices("pcnna").values()
WHOLE = load_network("alexnet-ungrouped")
SHAPES = convolution_shapes(WHOLE.convolutions())
PAPER = pcnna.Design()
HONEST = PAPER.with_bounds(*pcnna.BOUNDS)

# A layer with numbers all of its own, in two groups: 72 locations under 90 inputs, 4 kernels of 3 x 5 x 3 = 45 weights.
ODD = Layer("odd", "conv", 6, 4, (3, 5), stride=(1, 2), groups=2, in_side=(10, 21), out_side=(8, 9))
ODD_SHAPES = convolution_shapes([ODD])
# 20 wavelengths hold 4 of a kernel's 9 rows of 5: 3 groups.
GROUPED = pcnna.Design(batch=5.0, channels=20.0, adcs=3.0)
ROUND = dict.fromkeys(pcnna.NEEDS.names, 1.0) | {
    "clock": 2e9, "input_dacs": 3.0, "weight_dacs": 2.0, "dac_rate": 5e8, "adc_rate": 4e9, "data_bits": 16.0,
    "sram_width": 64.0, "sram_access": 4e-9, "dram_bandwidth": 1e9, "thermo_optic_settling": 6e-6, "ring_pitch": 3e-5,
    "laser_channel_power": 2e-3, "ring_power": 3e-3, "tia_power": 5e-3, "adc_power": 7e-3, "dac_energy": 1e-12,
    "modulator_energy": 2e-12, "sram_energy": 3e-12, "dram_energy": 4e-12, "modulator_area": 2e-9, "laser_area": 3e-9,
    "dac_area": 5e-9, "tia_area": 7e-9, "adc_area": 11e-9, "sram_area": 13e-9,
}  # fmt: skip

# From the paper's equations by hand: rings, kernel locations, new inputs, optical core (ns), full system (us), and the
# speed-ups over Eyeriss' processing latency per image (Chen et al., JSSC 2017, Table V).
BY_HAND = {
    "conv1": (34_848, 3025, 132, 605.0, 6.655, 6.8e3, 620),
    "conv2": (614_400, 729, 480, 145.8, 5.832, 6.7e4, 1680),
    "conv3": (884_736, 169, 768, 33.8, 2.163, 1.6e5, 2520),
    "conv4": (1_327_104, 169, 1152, 33.8, 3.245, 1.2e5, 1233),
    "conv5": (884_736, 169, 1152, 33.8, 3.245, 7.4e4, 770),
}


@pytest.fixture(scope="module")
def layers() -> pd.DataFrame:
    return layer_table(WHOLE, VALUES, PAPER)


def total(design: pcnna.Design, values: dict[str, float] | None = None, shapes=SHAPES) -> np.ndarray:
    return pcnna.total_time(pcnna.resource_times(shapes, values or VALUES, design), design)[0][:, 0]


def test_alexnet_is_the_papers_table(layers: pd.DataFrame) -> None:
    table = layers.set_index("layer")
    assert list(table.index) == list(BY_HAND)
    for layer, (rings, locations, new, core_ns, full_us, core_gain, full_gain) in BY_HAND.items():
        row = table.loc[layer]
        assert (row["rings"], row["locations"], row["new_inputs"]) == (rings, locations, new)
        assert row["optical_core_s"] == pytest.approx(core_ns * 1e-9, rel=1e-3)
        assert row["full_system_s"] == pytest.approx(full_us * 1e-6, rel=1e-3)
        assert row["speedup_optical_core"] == pytest.approx(core_gain, rel=0.03)
        assert row["speedup_full_system"] == pytest.approx(full_gain, rel=0.03)
    assert table.loc["conv1", "rings_unfiltered"] == pytest.approx(5.246e9, rel=1e-3)
    assert set(table["limit"]) == {"input_dacs"}


def test_maxima_and_totals_of_the_claims(layers: pd.DataFrame) -> None:
    summary = summary_table(layers).set_index(["quantity", "baseline"])
    expected = {
        ("speedup_max", "processing"): (1.61e5, 2520),
        ("speedup_max", "total"): (1.75e5, 2727),
        ("speedup_network", "processing"): (3.0e4, 1224),
        ("speedup_network", "total"): (3.4e4, 1364),
    }
    for key, (core, full) in expected.items():
        assert summary.loc[key, "optical_core"] == pytest.approx(core, rel=0.03)
        assert summary.loc[key, "full_system"] == pytest.approx(full, rel=0.03)


def test_one_weight_converter_at_batch_one_costs_a_factor_of_thirty(layers: pd.DataFrame) -> None:
    # 3.75 M weights through one 6 GS/s converter take 624 us; Eyeriss' total latency is 28.8 ms per image.
    seconds = total(PAPER.with_bounds("weight_dacs")).sum()
    assert seconds - total(PAPER).sum() == pytest.approx(624e-6, rel=0.01)
    assert layers["baseline_total_s"].sum() / seconds == pytest.approx(45, rel=0.02)
    grouped = convolution_shapes(load_network("alexnet").convolutions())
    assert grouped.weights.sum() == pytest.approx(2.33e6, rel=0.01)
    assert total(PAPER.with_bounds("weight_dacs"), shapes=grouped).sum() < 0.65 * seconds


def test_components_add_up(layers: pd.DataFrame) -> None:
    for kind, unit in (("energy", "j"), ("area", "mm2")):
        parts = layers.filter(regex=f"^{kind}_.+_{unit}$")
        assert len(parts.columns) > 5
        assert parts.sum(axis=1).to_numpy() == pytest.approx(layers[f"{kind}_{unit}"].to_numpy())
    assert layers["area_rings_mm2"].to_numpy() == pytest.approx(layers["rings"].to_numpy() * 625e-6)
    assert set(COLUMNS) <= set(layers.columns)


@pytest.mark.parametrize("bound", pcnna.BOUNDS)
def test_each_bound_is_a_switch_that_only_slows(bound: str) -> None:
    alone = total(PAPER.with_bounds(bound))
    assert (alone >= total(PAPER) - 1e-18).all()
    assert (total(HONEST) >= alone - 1e-18).all()


def test_the_named_limit_is_the_slowest_resource() -> None:
    times = pcnna.resource_times(SHAPES, VALUES, HONEST)
    _, limit = pcnna.total_time(times, HONEST)
    slowest = [max(times, key=lambda name, row=row: times[name][row, 0]) for row in range(len(SHAPES.names))]
    assert limit[:, 0].tolist() == slowest


@given(
    dacs=st.integers(1, 200), weight_dacs=st.integers(1, 200), batch=st.integers(1, 512), channels=st.integers(1, 200),
    in_time=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_more_hardware_or_sharing_never_slows(dacs, weight_dacs, batch, channels, in_time) -> None:
    values = {**VALUES, "input_dacs": float(dacs), "weight_dacs": float(weight_dacs)}
    design = replace(HONEST, batch=float(batch), channels=float(channels), in_time=float(in_time))
    here = total(design, values)
    assert (total(design, {**values, "input_dacs": dacs + 1.0}) <= here * (1 + 1e-12)).all()
    assert (total(design, {**values, "weight_dacs": weight_dacs + 1.0}) <= here * (1 + 1e-12)).all()
    assert (total(replace(design, batch=batch + 1.0), values) <= here * (1 + 1e-12)).all()
    assert (total(replace(design, in_time=0.0), values) <= here * (1 + 1e-12)).all()


@given(channels=st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_groups_of_wavelengths_hold_every_kernel_input(channels: int) -> None:
    groups = pcnna.wavelength_groups(SHAPES, replace(PAPER, channels=float(channels)))
    assert (groups * channels >= SHAPES.kernel_inputs).all()
    # Whole kernel rows leave less than one row of each group unused.
    if channels >= 22:
        least = np.ceil(SHAPES.kernel_inputs / (channels - SHAPES.kernel_width + 1))
        assert (groups <= least).all()


def test_arrays_of_designs_give_what_each_design_gives() -> None:
    batches, dacs = np.array([1.0, 8.0, 64.0]), np.array([5.0, 10.0, 40.0])
    together = replace(HONEST, batch=batches, channels=np.array([20.0, 30.0, 39.0]), in_time=np.array([0.0, 1.0, 1.0]))
    times = pcnna.resource_times(SHAPES, {**VALUES, "input_dacs": dacs}, together)
    seconds, _ = pcnna.total_time(times, together)
    for point in range(3):
        alone = replace(
            HONEST, batch=batches[point], channels=together.channels[point], in_time=together.in_time[point]
        )
        assert seconds[:, point] == pytest.approx(total(alone, {**VALUES, "input_dacs": dacs[point]}))


def test_the_waterfall_starts_at_the_claims_and_every_bound_takes_away() -> None:
    steps = waterfall(
        WHOLE, VALUES, channels=39, remedies=Remedies(64, 8192, 100, 20e-9, load_network("alexnet"))
    ).set_index("step")
    assert steps["speedup_max"].iloc[0] == pytest.approx(1.61e5, rel=0.01)
    assert steps["speedup_max"].iloc[1] == pytest.approx(2519, rel=0.01)
    bounds = steps[steps["kind"].isin(["paper", "bound"])]["speedup_network"]
    assert bounds.is_monotonic_decreasing
    remedies = steps[steps["kind"] == "remedy"]["speedup_network"]
    assert remedies.is_monotonic_increasing
    assert (steps["speedup_alone"].dropna() >= bounds.loc[steps["speedup_alone"].dropna().index] * (1 - 1e-12)).all()


def test_a_batch_hides_the_weights_but_not_the_memories() -> None:
    networks = [WHOLE, load_network("alexnet")]
    table = batch_table(networks, load_devices("pcnna"), batches=[1, 16, 4096], weight_dacs=[1, 100])
    assert len(table) == 2 * 2 * 2 * 2 * 3
    keys = ["network", "memory", "tuning", "weight_dacs"]
    assert table.groupby(keys)["speedup_network"].apply(lambda part: part.is_monotonic_increasing).all()
    endless = table[table["batch"] == 4096].set_index(keys)["speedup_network"]
    # With the weights out of the way, only the memories tell the designs apart.
    assert endless.xs("assumed", level="memory").to_numpy() == pytest.approx(endless.iloc[0], rel=0.02)
    assert (endless.xs("best of range", level="memory") > 5 * endless.iloc[0]).all()
    (first,) = table.query("network == 'alexnet-ungrouped' and memory == 'assumed' and tuning == 'thermo-optic' "
                           "and weight_dacs == 1 and batch == 1")["time_s"]  # fmt: skip
    assert first == pytest.approx(total(HONEST).sum())


def test_a_network_that_eyeriss_never_ran_has_times_but_no_speedup() -> None:
    table = layer_table(load_network("resnet18"), VALUES, PAPER)
    assert (table["full_system_s"] > 0).all()
    assert table["speedup_full_system"].isna().all()
    assert summary_table(table).set_index("quantity").loc["speedup_network", "full_system"].isna().all()


@pytest.mark.parametrize("name", ["batch", "channels", "adcs"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0"):
        replace(PAPER, **{name: 0.0}).check()


def test_energy_of_conv5_by_hand() -> None:
    # conv5: 13 x 13 locations of 384 channels, 256 kernels of 3 x 3, for a microsecond, batch 2.
    shapes = convolution_shapes([layer for layer in WHOLE.convolutions() if layer.name == "conv5"])
    design = replace(HONEST, batch=2.0)
    joules = pcnna.energy(shapes, VALUES, design, np.array([[1e-6]]))
    rings, conversions, outputs, inputs = 256 * 9 * 384, 169 * 1152, 169 * 256, 169 * 384
    by_hand = {
        "laser": rings * 0.071e-3 * 1e-6,
        "rings": rings * 0.388e-3 * 1e-6,
        "input_dacs": conversions * 33.3e-12,
        "weight_dacs": rings / 2 * 33.3e-12,
        "modulators": 169 * 9 * 384 * 450e-15,
        "amplifiers": 256 * 3e-3 * 1e-6,
        "adcs": outputs * 44.6e-3 / 2.8e9,
        "sram": (conversions + inputs + 2 * outputs) * 16 * 10e-12 / 64,
        "dram": (inputs + outputs + rings / 2) * 16 * 1.95e-9 / 64,
    }
    assert {name: part.item() for name, part in joules.items()} == pytest.approx(by_hand)


def test_groups_in_time_need_fewer_rings_and_modulators() -> None:
    in_time = replace(HONEST, channels=36.0, in_time=1.0)
    side_by_side = replace(in_time, in_time=0.0)
    one, many = (pcnna.area(SHAPES, VALUES, design) for design in (in_time, side_by_side))
    groups = pcnna.wavelength_groups(SHAPES, in_time)
    assert (one["rings"] * groups)[:, 0] == pytest.approx(many["rings"][:, 0])
    assert one["modulators"][:, 0] == pytest.approx(36 * VALUES["modulator_area"])
    assert many["modulators"][:, 0] == pytest.approx((SHAPES.window_inputs * VALUES["modulator_area"])[:, 0])


def test_a_dilated_window_meets_its_columns_again_only_at_multiples() -> None:
    def fresh(stride: int, dilation: int) -> float:
        one = Layer("x", "conv", 2, 4, (3, 3), (stride, stride), (0, 0), (dilation, dilation), 1, (32, 32), (8, 8))
        return pcnna.new_inputs(convolution_shapes([one])).item() / (2 * 3)

    # By walking: columns under the window at one location that were not under it at the last.
    for stride, dilation in [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (3, 2), (8, 2)]:
        under = [{start + dilation * tap for tap in range(3)} for start in (0, stride)]
        assert fresh(stride, dilation) == len(under[1] - under[0]), (stride, dilation)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="input_dacs is 0"):
        pcnna.NEEDS.check({**VALUES, "input_dacs": 0.0})


@pytest.mark.parametrize("bounded_by_dram", [False, True])
@pytest.mark.parametrize(("in_time", "passes"), [(0.0, 1), (1.0, 3)])
def test_times_by_hand(in_time: float, passes: int, bounded_by_dram: bool) -> None:
    design = replace(GROUPED, in_time=in_time, bounds=frozenset({"dram"} if bounded_by_dram else ()))
    # 72 locations convert 6 x 3 x 2 new inputs each; 288 outputs are written at each pass and read before all but one.
    cached = 72 * 36 + 288 * {1: 1, 3: 5}[passes]
    # 180 weights: through two converters at 0.5 GS/s in 180 ns, from a memory at 1 GB/s in 360 ns.
    by_hand = {
        "optical_core": 72 * passes / 2e9,
        "input_dacs": 72 * 36 / (3 * 5e8),
        "adcs": 288 * passes / (3 * 4e9),
        "sram": cached * 2 / 8 * 4e-9,
        "dram": (10 * 21 * 6 + 288) * 2 / 1e9,
        "weight_dacs": (360e-9 if bounded_by_dram else 180e-9) / 5,
        "settling": passes * 6e-6 / 5,
    }
    times = pcnna.resource_times(ODD_SHAPES, ROUND, design)
    assert {name: time.item() for name, time in times.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


def test_weights_take_as_long_as_their_converters_where_the_memory_is_faster() -> None:
    fast = ROUND | {"dram_bandwidth": 4e9}
    times = pcnna.resource_times(ODD_SHAPES, fast, GROUPED.with_bounds("dram"))
    assert times["weight_dacs"].item() == pytest.approx(180e-9 / 5, rel=1e-9, abs=0)


def test_there_are_no_more_converters_than_kernels() -> None:
    many = replace(GROUPED, adcs=99.0)
    seconds = pcnna.resource_times(ODD_SHAPES, ROUND, many)["adcs"].item()
    square_metres = pcnna.area(ODD_SHAPES, ROUND, many)["adcs"].item()
    assert (seconds, square_metres) == pytest.approx((288 / (4 * 4e9), 4 * 11e-9), rel=1e-9, abs=0)


@pytest.mark.parametrize(("in_time", "held", "banks", "samples"), [(0.0, 180, 3, 288), (1.0, 60, 1, 864)])
def test_energy_of_groups_by_hand(in_time: float, held: int, banks: int, samples: int) -> None:
    joules = pcnna.energy(ODD_SHAPES, ROUND, replace(GROUPED, in_time=in_time), np.array([[1e-6]]))
    converted, inputs, outputs = 72 * 36, 10 * 21 * 6, 288
    by_hand = {
        "laser": held * 2e-3 * 1e-6,
        "rings": held * 3e-3 * 1e-6,
        "input_dacs": converted * 1e-12,
        "weight_dacs": 180 / 5 * 1e-12,
        "modulators": 72 * 90 * 2e-12,
        "amplifiers": 4 * banks * 5e-3 * 1e-6,
        "adcs": samples * 7e-3 / 4e9,
        "sram": (converted + inputs + 2 * samples) * 16 * 3e-12,
        "dram": (inputs + outputs + 180 / 5) * 16 * 4e-12,
    }
    assert {name: part.item() for name, part in joules.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("channels", "in_time", "rings", "modulators", "lasers", "banks"),
    [
        (20.0, 0.0, 180, 90, 20, 3),
        (20.0, 1.0, 60, 2 * 20, 20, 1),
        (np.inf, 0.0, 180, 90, 45, 1),
        (np.inf, 1.0, 180, 90, 45, 1),
    ],
)
def test_area_by_hand(channels: float, in_time: float, rings: int, modulators: int, lasers: int, banks: int) -> None:
    square_metres = pcnna.area(ODD_SHAPES, ROUND, replace(GROUPED, channels=channels, in_time=in_time))
    by_hand = {
        "rings": rings * 30e-6**2, "modulators": modulators * 2e-9, "lasers": lasers * 3e-9, "dacs": (3 + 2) * 5e-9,
        "amplifiers": 4 * banks * 7e-9, "adcs": 3 * 11e-9, "sram": 13e-9,
    }  # fmt: skip
    assert {name: part.item() for name, part in square_metres.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


# 9 rows of 5 inputs: fewer wavelengths than a row cut each row, more hold whole rows.
@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 45), (2, 27), (4, 18), (5, 9), (9, 9), (10, 5), (40, 2), (44, 2), (45, 1), (46, 1), (np.inf, 1)],
)
def test_groups_of_wavelengths_by_hand(channels: float, groups: int) -> None:
    assert pcnna.wavelength_groups(ODD_SHAPES, pcnna.Design(channels=float(channels))).item() == groups


def test_rings_with_and_without_filtering() -> None:
    assert pcnna.rings(ODD_SHAPES).item() == 180
    assert pcnna.rings(ODD_SHAPES, filtered=False).item() == 180 * 10 * 21 * 6


@pytest.mark.parametrize(
    ("bounds", "total_s", "limit"),
    [
        ((), 3.0, "input_dacs"),
        (("adcs",), 4.0, "adcs"),
        (("weight_dacs",), 3.0 + 2.5, "input_dacs"),
        (("weight_dacs", "settling"), 3.0 + 2.5 + 7.0, "settling"),
        (pcnna.BOUNDS, 6.0 + 2.5 + 7.0, "settling"),
    ],
)
def test_streams_overlap_and_preparations_add(bounds: tuple[str, ...], total_s: float, limit: str) -> None:
    alone = {"optical_core": 1, "input_dacs": 3, "adcs": 4, "sram": 5, "dram": 6, "weight_dacs": 2.5, "settling": 7}
    times = {name: np.array([[float(seconds)]]) for name, seconds in alone.items()}
    total, name = pcnna.total_time(times, PAPER.with_bounds(*bounds))
    assert (total.item(), name.item()) == (total_s, limit)


def test_the_design_by_default_is_the_papers() -> None:
    assert pcnna.Design().check() == pcnna.Design(
        batch=1.0, channels=np.inf, in_time=0.0, adcs=np.inf, bounds=frozenset()
    )


def test_a_design_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        pcnna.Design().batch = 2.0  # type: ignore[misc]


def test_an_endless_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch is inf, but must be a whole number of at least 1"):
        replace(PAPER, batch=np.inf).check()


def test_a_switch_is_off_or_on() -> None:
    with pytest.raises(UserError, match=r"in_time is 0.5, but must be 0 \(off\) or 1 \(on\)"):
        replace(PAPER, in_time=0.5).check()


def test_a_device_set_that_lacks_a_parameter_is_refused() -> None:
    without = {name: value for name, value in ROUND.items() if name != "dram_energy"}
    with pytest.raises(UserError, match="lacks 'dram_energy', which PCNNA needs"):
        pcnna.NEEDS.check(without)


def test_how_rings_are_counted_is_said_by_name() -> None:
    with pytest.raises(TypeError):
        pcnna.rings(ODD_SHAPES, False)  # type: ignore[misc]
