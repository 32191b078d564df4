"""The Winograd accelerator against exact transforms, brute-force counts, and what must hold for any design."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from typer.testing import CliRunner

from lumoe.cli.photonics.winograd import app
from lumoe.errors import UserError
from lumoe.photonics.accelerators import winograd
from lumoe.photonics.accelerators.tiling import check_tiles, phase_kernel, phases
from lumoe.photonics.cook_toom import additions, noise_gain, tile_points, transforms
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.layers import Layer
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import platforms
from lumoe.photonics.studies.winograd import layer_table, summary_table
from lumoe.photonics.studies.winograd_link import link, with_links

SETS = ("conservative", "moderate", "aggressive")
MODERATE = load_devices("moderate").values()
VGG16 = convolution_shapes(load_network("vgg16").convolutions())

# A layer with numbers all of its own, in two groups of 6 channels and 5 kernels: F(4x4, 3x3) covers its 8 x 12 outputs
# with 2 x 3 tiles. Buses of 2 channels and 3 kernels take 3 x 2 passes a group.
ODD = convolution_shapes([Layer("odd", "conv", 12, 10, (3, 3), groups=2, in_side=(10, 14), out_side=(8, 12))])
DESIGN = winograd.Design(tile=4.0, batch=5.0, memory=1.0)
ROUND = dict.fromkeys(winograd.NEEDS.names, 1.0) | {
    "channels": 2.0, "kernels": 3.0, "signed_rails": 2.0, "clock": 2e9, "dram_bandwidth": 3e9, "sram_bandwidth": 5e9,
    "adc_bits": 6.0, "data_bits": 12.0, "weight_settling": 7e-6, "laser_channel_power": 2e-3, "ring_power": 3e-3,
    "modulator_power": 5e-3, "dac_energy": 2e-12, "tia_energy": 3e-12, "adc_fom": 5e-15, "adder_energy": 7e-12,
    "sram_energy": 11e-12, "dram_energy": 13e-12, "laser_area": 2e-9, "modulator_area": 3e-9, "dac_area": 5e-9,
    "ring_area": 7e-9, "tia_area": 11e-9, "adc_area": 13e-9, "sram_area": 17e-9, "sram_capacity": 6.0,
    "sram_macro": 4.0,
}  # fmt: skip


def layer(channels=3, kernels=5, kernel=3, stride=1, side=13, groups=1, dilation=1) -> Layer:
    out = (side - dilation * (kernel - 1) - 1) // stride + 1
    return Layer("one", "conv", channels, kernels, (kernel, kernel), (stride, stride), groups=groups,
                 dilation=(dilation, dilation), in_side=(side, side), out_side=(out, out))  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    sets = {name: load_devices(name) for name in SETS}
    layers = layer_table(load_network("vgg16"), {n: d.values() for n, d in sets.items()}, [1, 2, 4, 6])
    return with_links(layers, {n: link(d) for n, d in sets.items()})


@pytest.mark.parametrize(("m", "r"), [(2, 3), (3, 3), (4, 3), (6, 3), (2, 5), (4, 5), (2, 2), (4, 2)])
def test_a_tile_computes_the_convolution(m: int, r: int) -> None:
    a_t, g, b_t = (np.array(matrix, dtype=float) for matrix in transforms(m, r))
    random = np.random.default_rng(m * 10 + r)
    d, kernel = random.normal(size=(m + r - 1, m + r - 1)), random.normal(size=(r, r))
    tile = a_t @ ((g @ kernel @ g.T) * (b_t @ d @ b_t.T)) @ a_t.T
    np.testing.assert_allclose(tile, correlate2d(d, kernel, "valid"), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("m", "r", "times"), [(2, 3, 2.25), (3, 3, 3.24), (4, 3, 4.0), (6, 3, 5.0625), (2, 5, 25 / 9)])
def test_multiplications_saved_are_the_published_ones(m: int, r: int, times: float) -> None:
    # m²r² products of direct convolution for n² of the tile.
    assert (m * r / tile_points(m, r)) ** 2 == pytest.approx(times)


def test_f23_needs_the_additions_that_lavin_counts() -> None:
    # Lavin and Gray, CVPR 2016, section 4.1: F(2x2, 3x3) takes 32 additions for the data and 24 for the inverse.
    assert additions(2, 3) == (32, 24)
    assert additions(1, 3) == (0, 0)


@pytest.mark.parametrize(("m", "said"), [(7, "tile 7 is impossible"), (0, "at least 1"), (-2, "at least 1")])
def test_an_impossible_tile_is_refused(m: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tile_points(m, 3)


def test_an_impossible_tile_names_the_layer() -> None:
    with pytest.raises(UserError, match="layer conv2: tile 6 is impossible for kernel side 5"):
        check_tiles(convolution_shapes(load_network("alexnet").convolutions()), [6])


def test_a_stride_splits_the_kernel_into_phases() -> None:
    shapes = convolution_shapes([layer(kernel=11, stride=4, side=227)])
    assert phases(shapes).item() == 16
    assert phase_kernel(shapes).item() == 3


def test_sides_that_the_tile_does_not_divide_are_padded() -> None:
    shapes = convolution_shapes([layer(side=15)])
    tiles = winograd.divide(shapes, MODERATE, winograd.Design(tile=4.0)).tiles.item()
    assert tiles * 16 / 13**2 == pytest.approx(1.51, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 40), kernels=st.integers(1, 40), side=st.integers(3, 20),
    tile=st.sampled_from([1, 2, 4, 6]), bus=st.integers(1, 20), ways=st.integers(1, 20),
)  # fmt: skip
def test_clocks_are_those_of_walking_over_all_tiles(channels, kernels, side, tile, bus, ways) -> None:
    one = layer(channels, kernels, 3, 1, side)
    values = {**MODERATE, "channels": float(bus), "kernels": float(ways)}
    times = winograd.resource_times(convolution_shapes([one]), values, winograd.Design(tile=float(tile)))
    out = one.out_side[0]
    walked = sum(
        1 for _ in product(range(0, out, tile), range(0, out, tile), range(0, channels, bus), range(0, kernels, ways))
    )
    assert times["optical_core"].item() * values["clock"] == pytest.approx(walked)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["clock", "sram_bandwidth", "dram_bandwidth", "channels", "kernels"]),
    factor=st.sampled_from([2.0, 4.0]), tile=st.sampled_from([1.0, 2.0, 4.0]), memory=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_more_of_a_resource_never_takes_longer(name, factor, tile, memory) -> None:
    design = winograd.Design(tile=tile, memory=memory)
    before, _ = winograd.total_time(winograd.resource_times(VGG16, MODERATE, design))
    after, _ = winograd.total_time(winograd.resource_times(VGG16, {**MODERATE, name: MODERATE[name] * factor}, design))
    assert (after <= before * (1 + 1e-12)).all()


def test_many_designs_at_once_equal_one_at_a_time() -> None:
    shapes = convolution_shapes(load_network("resnet18").convolutions())
    tiles, batches = np.array([1.0, 2.0, 4.0, 4.0]), np.array([1.0, 8.0, 1.0, 16.0])
    clock = np.array([1e9, 2e9, 5e9, 10e9])

    def run(tile, batch, rate):
        values = {**MODERATE, "clock": rate}
        design = winograd.Design(tile=tile, batch=batch, memory=1.0)
        time, _ = winograd.total_time(winograd.resource_times(shapes, values, design))
        return time, sum(winograd.energy(shapes, values, design, time).values())

    time, joules = run(tiles, batches, clock)
    for index in range(4):
        one_time, one_joules = run(tiles[index], batches[index], clock[index])
        np.testing.assert_allclose(time[:, index], one_time[:, 0])
        np.testing.assert_allclose(joules[:, index], one_joules[:, 0])


def test_power_energy_and_area_close(table: pd.DataFrame) -> None:
    parts = table.filter(regex=r"^power_(?!w$|with)").sum(axis=1)
    np.testing.assert_allclose(parts, table["power_w"], rtol=1e-12)
    np.testing.assert_allclose(table.filter(regex="^energy_.+_j$").sum(axis=1), table["energy_j"], rtol=1e-12)
    np.testing.assert_allclose(table.filter(regex="^area_.+_mm2$").sum(axis=1), table["area_mm2"], rtol=1e-12)
    np.testing.assert_allclose(table["gop_per_s"] / table["power_w"], table["gop_per_s_per_w"], rtol=1e-12)


def test_the_whole_network_is_the_sum_of_its_layers(table: pd.DataFrame) -> None:
    keys = ["device_set", "tile", "scope"]
    layers = table[table["layer"] != "all"].groupby(keys)[["time_s", "energy_j", "macs"]].sum()
    whole = table[table["layer"] == "all"].set_index(keys)[["time_s", "energy_j", "macs"]]
    pd.testing.assert_frame_equal(layers.sort_index(), whole.sort_index())
    assert (whole["macs"] == 15_346_630_656).all()


def test_a_chip_alone_pays_no_dram_and_a_system_does(table: pd.DataFrame) -> None:
    assert (table.loc[table["scope"] == "chip", "energy_dram_j"] == 0).all()
    assert (table.loc[table["scope"] == "system", "energy_dram_j"] > 0).all()


def test_every_baseline_is_beside_every_design(table: pd.DataFrame) -> None:
    known = platforms()
    summary = summary_table(table, known)
    assert len(summary) == len(known) * len(SETS) * 4 * 2
    complete = summary["baseline_gop_per_s_per_w"].notna()
    assert summary["ratio_gop_per_s_per_w"].notna().equals(complete)
    row = summary[(summary["baseline"] == "Eyeriss, VGG16 conv")].iloc[0]
    assert row["ratio_gop_per_s"] == pytest.approx(row["gop_per_s"] / 21.4)
    assert row["ratio_power"] == pytest.approx(row["power_w"] / 0.236)


@pytest.mark.parametrize("name", SETS)
def test_the_needed_laser_power_gives_exactly_the_needed_bits(name: str) -> None:
    devices = load_devices(name)
    found = link(devices)
    brighter = devices.replace({"laser_channel_power": devices["laser_channel_power"].value * found.laser_factor})
    if found.feasible_bits:
        assert found.laser_factor == 1
    else:
        assert link(brighter).attainable_bits == pytest.approx(found.required_bits, abs=1e-6)
    assert found.attainable_bits < found.ceiling_bits


def test_what_no_laser_can_do_is_flagged() -> None:
    devices = load_devices("moderate")
    blunt = link(devices.replace({"adc_bits": 8}))
    assert not blunt.feasible_bits
    assert np.isnan(blunt.laser_factor)
    assert not link(devices.replace({"channels": 60})).feasible_channels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device-set", "moderat", "--tile", "2"], "did you mean 'moderate'"),
        (["--device-set", "moderate", "--tile", "9"], "tile 9 is impossible"),
        (["--device-set", "moderate", "--tile", "-1"], "at least 1"),
        (["--device-set", "moderate", "--tile", "2", "--network", "vgg61"], "did you mean 'vgg16'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    paths = ["--layers", str(tmp_path / "a.csv"), "--summary", str(tmp_path / "b.csv")]
    result = CliRunner().invoke(app, [*paths, *arguments])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tile", [1, 2, 4])
def test_the_buffer_gives_each_row_of_tiles_its_pixels_once(tile: int) -> None:
    one = layer(channels=4, kernels=8, side=18)
    values = {**MODERATE, "channels": 4.0, "kernels": 8.0, "data_bits": 8.0, "sram_bandwidth": 1.0}
    times = winograd.resource_times(convolution_shapes([one]), values, winograd.Design(tile=float(tile)))
    # Walk: a row of tiles reads its n rows of pixels from left to right, each once; then 8 outputs at every pixel.
    read = sum(4 for _ in range(0, 16, tile) for _ in range(tile + 2) for _ in range(16 + 2))
    assert times["sram"].item() == pytest.approx(read + 16 * 16 * 8)


# Output SNR in dB at noise of 1e-3 of each tap's full scale, 64 channels, inputs behind a ReLU: simulated once,
# independently of this package; direct convolution gave 48 to 50.
SIMULATED_DB = {2: 46.3, 4: 31.1, 6: 25.3}


@pytest.mark.parametrize("tile", SIMULATED_DB)
def test_the_inverse_transform_amplifies_noise_as_simulated(tile: int) -> None:
    loss = 10 * np.log10(noise_gain(tile, 3))
    assert 48 - SIMULATED_DB[tile] - 0.5 < loss < 50 - SIMULATED_DB[tile] + 0.5


def test_direct_convolution_and_single_pixels_amplify_nothing() -> None:
    assert noise_gain(1, 3) == 1.0
    assert noise_gain(4, 1) == 1.0


def test_noise_of_taps_passes_through_the_inverse_transform_as_drawn() -> None:
    # Drawn: white kernels, inputs behind a ReLU, noise of one share of each tap's root mean square.
    random = np.random.default_rng(5)
    a_t, g, b_t = (np.array(matrix.tolist(), dtype=float) for matrix in transforms(4, 3))
    kernels = random.normal(size=(4000, 3, 3))
    inputs = np.maximum(random.normal(size=(4000, 6, 6)), 0)
    products = (g @ kernels @ g.T) * (b_t @ inputs @ b_t.T)
    scale = np.sqrt((products**2).mean(axis=0))
    direct = np.sqrt(((kernels * inputs[:, :3, :3]).reshape(4000, -1).sum(axis=1) ** 2).mean())
    noise = a_t @ (scale * random.normal(size=(4000, 6, 6))) @ a_t.T
    assert (noise**2).mean() / direct**2 == pytest.approx(noise_gain(4, 3), rel=0.1)


def test_bits_of_an_output_pay_for_the_tile() -> None:
    one = convolution_shapes([layer()])
    values = {**MODERATE, "memristor_bits": 9.0, "adc_bits": 5.0}
    loss = np.log2(noise_gain(4, 3)) / 2
    digital = winograd.Design(tile=4.0, analog_inverse=0.0)
    assert winograd.output_bits(one, values, winograd.Design(tile=1.0), 4.0).item() == 4.0
    assert winograd.output_bits(one, values, winograd.Design(tile=4.0), 7.0).item() == pytest.approx(7 - loss)
    assert winograd.output_bits(one, values, winograd.Design(tile=4.0), 9.0).item() == 5.0
    assert winograd.output_bits(one, values, digital, 9.0).item() == pytest.approx(5 - loss)
    assert winograd.output_bits(one, values, digital, 1.0).item() == 0.0


def test_energy_of_one_pass_by_hand() -> None:
    # 16 channels of 6 x 6, 32 kernels of 3 x 3, F(2x2, 3x3): 4 tiles of 16 points, one pass, on the moderate set.
    one = convolution_shapes([layer(channels=16, kernels=32, side=6)])
    design = winograd.Design(tile=2.0, memory=1.0, batch=2.0)
    times = winograd.resource_times(one, MODERATE, design)
    # A row of two tiles reads 4 rows of 6 pixels; then 512 outputs.
    sram_bits = (2 * 4 * 6 * 16 + 512) * 8
    dram_bits = (36 * 16 + 512 + 16 * 32 * 9 / 2) * 8
    assert times["optical_core"].item() == pytest.approx(4 / 5e9)
    assert times["sram"].item() == pytest.approx(sram_bits / 8 / 1024e9)
    assert times["dram"].item() == pytest.approx(dram_bits / 8 / 25.6e9)
    joules = winograd.energy(one, MODERATE, design, np.array([[1e-6]]))
    rings = 16 * 16 * 32
    by_hand = {
        "laser": rings * 2 * 0.071e-3 * 1e-6,
        "rings": rings * 0.388e-3 * 1e-6,
        "modulators": 16 * 16 * 2 * 1.41e-3 * 1e-6,
        "dacs": (4 * 16 * 16 * 2 + 16 * 16 * 32 / 2) * 2.6e-12,
        "amplifiers": 4 * 16 * 32 * 0.3e-12,
        "adcs": 4 * 4 * 32 * 40e-15 * 2**6,
        "transforms": 4 * (16 * 32 + 32 * 24) * 0.03e-12,
        "sram": (sram_bits + (36 * 16 + 512) * 8) * 0.435e-12 / 64,
        "dram": dram_bits * 1.95e-9 / 64,
    }
    assert {name: part.item() for name, part in joules.items()} == pytest.approx(by_hand)


def test_partial_sums_go_out_and_come_back_once_for_each_group_but_the_last() -> None:
    def cached(groups: int) -> float:
        one = convolution_shapes([layer(channels=16 * groups, kernels=32, side=6)])
        return winograd.resource_times(one, MODERATE, winograd.Design(tile=2.0))["sram"].item() * 1024e9

    # 768 reads of pixels for each group; 512 outputs of one byte; partial sums of two bytes, written and read.
    assert cached(1) == pytest.approx(768 + 512)
    assert cached(3) == pytest.approx(3 * 768 + 2 * 2 * 2 * 512 + 512)


def test_a_dilated_convolution_is_tiled_as_interleaved_images() -> None:
    one = convolution_shapes([layer(side=12, dilation=2)])
    # 8 x 8 outputs are four images of 4 x 4.
    assert winograd.divide(one, MODERATE, winograd.Design(tile=4.0)).tiles.item() == 4
    assert winograd.divide(one, MODERATE, winograd.Design(tile=3.0)).tiles.item() == 16


def test_strides_may_differ_by_side() -> None:
    shapes = convolution_shapes([Layer("x", "conv", 2, 4, (1, 7), (1, 2), in_side=(9, 20), out_side=(9, 7))])
    assert phases(shapes).item() == 2
    assert phase_kernel(shapes).item() == 4


# Each of 2 rows of tiles reads 6 rows of 14 pixels, for each of 2 groups of kernels; an output is written once and, for
# 2 of the 3 groups of channels, written and read in double width.
BUFFER_BITS = (2 * 6 * 14 * 12 * 2 + 8 * 12 * 10 * (1 + 2 * 4)) * 12
IMAGE_BITS = (10 * 14 * 12 + 8 * 12 * 10) * 12
WEIGHT_BITS = 10 * 6 * 9 * 12 / 5


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_times_of_many_passes_by_hand(memory: float) -> None:
    times = winograd.resource_times(ODD, ROUND, replace(DESIGN, memory=memory))
    by_hand = {
        "optical_core": 6 * 12 / 2e9,
        "sram": BUFFER_BITS / 8 / 5e9,
        "dram": memory * (IMAGE_BITS + WEIGHT_BITS) / 8 / 3e9,
        "settling": 12 * 7e-6 / 5,
    }
    assert {name: time.item() for name, time in times.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


@pytest.mark.parametrize(("analog_inverse", "samples"), [(1.0, 16), (0.0, 36)])
def test_energy_of_many_passes_by_hand(analog_inverse: float, samples: int) -> None:
    joules = winograd.energy(ODD, ROUND, replace(DESIGN, analog_inverse=analog_inverse), np.array([[1e-6]]))
    # Lavin and Gray's matrices of F(4x4, 3x3) have rows of 3, 4, 4, 4, 4, 3 numbers (input) and 5, 4, 4, 5 (inverse).
    into, back = (2 + 3 + 3 + 3 + 3 + 2) * (6 + 6), (4 + 3 + 3 + 4) * (6 + 4)
    rings, modulated, detected = 36 * 2 * 3, 36 * 2, 6 * 3 * 10
    by_hand = {
        "laser": rings * 2 * 2e-3 * 1e-6,
        "rings": rings * 3e-3 * 1e-6,
        "modulators": modulated * 2 * 5e-3 * 1e-6,
        "dacs": (6 * 36 * 12 * 2 * 2 + 36 * 6 * 10 / 5) * 2e-12,
        "amplifiers": detected * 36 * 3e-12,
        "adcs": detected * samples * 5e-15 * 64,
        "transforms": (6 * 12 * 2 * into + detected * back + 960 * 2) * 7e-12,
        "sram": (BUFFER_BITS + IMAGE_BITS) * 11e-12,
        "dram": (IMAGE_BITS + WEIGHT_BITS) * 13e-12,
    }
    assert {name: part.item() for name, part in joules.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("tile", "analog_inverse", "points", "rails", "samples"),
    [(4.0, 1.0, 36, 2, 16), (4.0, 0.0, 36, 2, 36), (1.0, 1.0, 9, 1, 1)],
)
def test_area_by_hand(tile: float, analog_inverse: float, points: int, rails: int, samples: int) -> None:
    square_metres = winograd.area(ODD, ROUND, replace(DESIGN, tile=tile, analog_inverse=analog_inverse))
    by_hand = {
        "lasers": 2 * 2e-9,
        "modulators": points * 2 * rails * 3e-9,
        "dacs": points * 2 * rails * 5e-9,
        "rings": points * 2 * 3 * 7e-9,
        "amplifiers": points * 3 * 11e-9,
        "adcs": samples * 3 * 13e-9,
        "sram": 17e-9 * 6 / 4,
    }
    assert {name: part.item() for name, part in square_metres.items()} == pytest.approx(by_hand, rel=1e-9, abs=0)


def test_direct_convolution_lights_one_rail() -> None:
    joules = winograd.energy(ODD, ROUND, replace(DESIGN, tile=1.0, memory=0.0), np.array([[1e-6]]))
    assert joules["laser"].item() == pytest.approx(9 * 2 * 3 * 2e-3 * 1e-6, rel=1e-9, abs=0)
    # 96 outputs, each under 9 taps of 12 channels, for 2 groups of kernels.
    assert joules["dacs"].item() == pytest.approx(96 * 9 * 12 * 2 * 2e-12, rel=1e-9, abs=0)


@pytest.mark.parametrize(("channels", "groups"), [(1, 6), (2, 3), (3, 2), (5, 2), (6, 1), (7, 1)])
def test_channels_of_a_group_are_swept_in_groups_of_the_bus(channels: int, groups: int) -> None:
    work = winograd.divide(ODD, ROUND | {"channels": float(channels)}, DESIGN)
    assert work.channel_groups.item() == groups


@pytest.mark.parametrize(("kernels", "groups"), [(1, 5), (2, 3), (4, 2), (5, 1), (6, 1)])
def test_kernels_of_a_group_are_swept_in_groups_of_the_splitter(kernels: int, groups: int) -> None:
    work = winograd.divide(ODD, ROUND | {"kernels": float(kernels)}, DESIGN)
    assert work.kernel_groups.item() == groups


def test_phases_of_a_stride_are_channels() -> None:
    work = winograd.divide(convolution_shapes([layer(channels=3, kernel=5, stride=2, side=15)]), ROUND, DESIGN)
    # 6 x 6 outputs: 2 x 2 tiles of 4 x 4 under phases of up to 3 x 3; a row of tiles reads 6 rows of 4 + 4 + 2 values.
    assert (work.channels.item(), work.points.item(), work.tiles.item()) == (3 * 4, 36, 4)
    assert work.fresh_inputs.item() == 6 * (4 + 4 + 2) / 2


@pytest.mark.parametrize(
    ("settling", "total_s", "limit"), [(0.0, 3.0, "sram"), (2.0, 5.0, "sram"), (4.0, 7.0, "settling")]
)
def test_streams_overlap_and_settling_adds(settling: float, total_s: float, limit: str) -> None:
    alone = {"optical_core": 1.0, "sram": 3.0, "dram": 2.0, "settling": settling}
    total, name = winograd.total_time({name: np.array([[seconds]]) for name, seconds in alone.items()})
    assert (total.item(), name.item()) == (total_s, limit)


@pytest.mark.parametrize(
    ("detector", "memristor", "adc", "bits"), [(4.0, 9.0, 9.0, 4.0), (9.0, 5.0, 9.0, 5.0), (9.0, 9.0, 6.0, 6.0)]
)
def test_the_bluntest_part_sets_the_bits_of_direct_convolution(detector, memristor, adc, bits) -> None:
    values = ROUND | {"memristor_bits": memristor, "adc_bits": adc}
    assert winograd.output_bits(ODD, values, replace(DESIGN, tile=1.0), detector).item() == bits


def test_the_design_by_default_is_a_chip_with_the_smallest_tile() -> None:
    assert winograd.Design().check() == winograd.Design(tile=2.0, batch=1.0, analog_inverse=1.0, memory=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tile": 0.0}, "tile is 0, but must be a whole number of at least 1"),
        ({"batch": 1.5}, "batch is 1.5, but must be a whole number"),
        ({"batch": np.inf}, "batch is inf, but must be a whole number"),
        ({"analog_inverse": 2.0}, r"analog_inverse is 2, but must be 0 \(off\) or 1 \(on\)"),
        ({"memory": -1.0}, "memory is -1, but must be 0"),
    ],
)
def test_an_impossible_design_is_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        winograd.Design(**change).check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernels": 2.5}, "kernels is 2.5, but must be a whole number of at least 1"),
        ({"clock": 0.0}, "clock is 0, but must be positive"),
    ],
)
def test_an_impossible_device_is_refused(change: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        winograd.NEEDS.check(ROUND | change)


def test_a_device_set_that_lacks_a_parameter_is_refused() -> None:
    without = {name: value for name, value in ROUND.items() if name != "adder_energy"}
    with pytest.raises(UserError, match="lacks 'adder_energy', which the Winograd accelerator needs"):
        winograd.NEEDS.check(without)


@pytest.mark.parametrize(("thing", "name"), [(DESIGN, "batch"), (winograd.divide(ODD, ROUND, DESIGN), "tiles")])
def test_designs_and_their_work_cannot_be_changed_in_place(thing: object, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(thing, name, 2.0)
