from __future__ import annotations

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from typer.testing import CliRunner

from lumoe.errors import UserError
from lumoe.photonics.accuracy import digits
from lumoe.photonics.accuracy import evaluate as accuracy
from lumoe.photonics.accuracy.digits import Training
from lumoe.photonics.accuracy.evaluate import Setting
from lumoe.photonics.core.layers import to_photonic
from lumoe.photonics.physics import tables
from lumoe.photonics.physics.parameters import load_physics


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return digits.trained(Training(epochs=8, learning_rate=5e-3, seed=0))


def test_digits_are_split_by_class_without_overlap() -> None:
    shown = digits.load()
    assert len(shown.train_images) + len(shown.test_images) == 1797
    assert len(shown.test_images) == 599
    shares = torch.bincount(shown.test_labels) / torch.bincount(torch.cat([shown.train_labels, shown.test_labels]))
    assert float((shares - 1 / 3).abs().max()) < 0.01


def test_training_repeats_exactly_and_survives_the_file(model: nn.Sequential, tmp_path) -> None:
    again = digits.trained(Training(epochs=8, learning_rate=5e-3, seed=0))
    digits.save(model, tmp_path / "model.safetensors")
    read = digits.read(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, read.state_dict()[name])


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_file_that_is_no_network_is_named(tmp_path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        digits.read(path)


def test_little_noise_costs_little_and_much_costs_much(model: nn.Sequential) -> None:
    settings = accuracy.grid([1, 2], [8], [16], [0.0, 30.0])
    table = accuracy.evaluate(model, settings, "moderate", seeds=2, images=100)
    assert list(table.columns) == list(accuracy.COLUMNS)
    quiet, loud = table[table["noise"] == 0], table[table["noise"] == 30]
    assert (quiet["accuracy"] >= quiet["accuracy_float"] - 0.03).all()
    assert (loud["accuracy"] < 0.5).all()
    assert (table["ci_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["ci_high"]).all()
    assert (quiet["seeds"] == 1).all()
    assert (loud["seeds"] == 2).all()
    assert list(table["design"]) == ["pcnna", "pcnna", "winograd", "winograd"]


def test_detector_samples_by_hand() -> None:
    image = torch.rand(1, 4, 8, 8)
    layer = nn.Conv2d(4, 6, 3, padding=1)
    # 6·8·8 outputs of 36 inputs, in banks of 16: three samples each.
    assert accuracy.detector_samples(to_photonic(layer, "moderate", channels=16), image) == 6 * 64 * 3
    # 16 tiles of 4×4 taps for 6 kernels, 4 input channels: one sample each.
    assert accuracy.detector_samples(to_photonic(layer, "moderate", channels=16, tile=2), image) == 6 * 16 * 16


def test_cheapest_takes_fewest_samples_then_bits_among_the_good() -> None:
    base = {"design": "pcnna", "noise": 1.0, "accuracy_float": 0.98}
    table = pd.DataFrame(
        [
            {**base, "accuracy": 0.95, "detector_samples": 10, "weight_bits": 3},
            {**base, "accuracy": 0.975, "detector_samples": 20, "weight_bits": 6},
            {**base, "accuracy": 0.970, "detector_samples": 20, "weight_bits": 4},
            {**base, "accuracy": 0.98, "detector_samples": 30, "weight_bits": 3},
            {**base, "accuracy": 0.98, "detector_samples": 5, "weight_bits": 3, "noise": 0.0},
            {**base, "accuracy": 0.5, "detector_samples": 5, "weight_bits": 3, "design": "winograd"},
        ]
    )
    best = accuracy.cheapest(table)
    assert best[["design", "weight_bits", "detector_samples"]].to_numpy().tolist() == [["pcnna", 4, 20]]


def test_fine_tuning_recovers_accuracy(model: nn.Sequential) -> None:
    setting = Setting(tile=1, weight_bits=2, channels=16, noise=0.5)
    table = accuracy.fine_tune(model, [setting], "moderate", Training(1, 2e-3, seed=0), seeds=2, images=200)
    row = table.iloc[0]
    assert list(table.columns) == list(accuracy.FINE_TUNE_COLUMNS)
    assert row["before_ci_low"] <= row["accuracy_before"] <= row["before_ci_high"]
    assert row["after_ci_low"] <= row["accuracy_after"] <= row["after_ci_high"]
    assert row["accuracy_after"] > row["accuracy_before"]
    assert row["recovered"] == pytest.approx(
        (row["accuracy_after"] - row["accuracy_before"]) / (row["accuracy_float"] - row["accuracy_before"])
    )


def test_wilson_interval_is_scipys() -> None:
    expected = binomtest(585, 599).proportion_ci(method="wilson")
    assert accuracy.wilson(585 / 599, 599) == pytest.approx((expected.low, expected.high))


def test_nothing_to_fine_tune_is_said() -> None:
    table = pd.DataFrame({"noise": [1.0], "accuracy": [0.2], "tile": [1]})
    with pytest.raises(UserError, match=r"no noisy setting keeps an accuracy of 0\.5"):
        accuracy.spoiled(table)


def test_weight_error_table_shows_what_calibration_buys() -> None:
    table = tables.weight_errors(load_physics(), seed=0, spacings=(4.0, 8.0), banks=20).set_index("method")
    isolated, calibrated, drifted = (table.loc[name, "rms_error"] for name in ("isolated", "calibrated", "drifted"))
    assert (calibrated < 1e-6).all()
    assert (calibrated < drifted.to_numpy()).all()
    assert (drifted.to_numpy() < isolated.to_numpy()).all()


def test_command_line_writes_the_tables(tmp_path) -> None:
    from lumoe.cli.photonics.physics import app

    names = ("spectrum", "bits", "sizes", "weights")
    options = [word for name in names for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert all(len(pd.read_csv(tmp_path / f"{name}.csv")) > 5 for name in names)
