"""What the analog core does to a network's accuracy: over a grid of settings, and after training through it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from lumoe.errors import UserError
from lumoe.photonics.accuracy import digits
from lumoe.photonics.core.layers import PhotonicConv2d, PhotonicLinear, photonic_layers, reseed, to_photonic
from lumoe.photonics.devices import load_devices
from lumoe.photonics.physics.parameters import load_physics
from lumoe.progress import track

COLUMNS = (
    "network", "dataset", "design", "tile", "weight_bits", "channels", "noise", "accuracy", "ci_low", "ci_high",
    "accuracy_float", "samples", "seeds", "test_ci_low", "test_ci_high", "detector_samples", "adc_energy_j", "basis",
)  # fmt: skip
FINE_TUNE_COLUMNS = (
    "network", "dataset", "design", "tile", "weight_bits", "channels", "noise", "accuracy_before", "before_ci_low",
    "before_ci_high", "accuracy_after", "after_ci_low", "after_ci_high", "accuracy_float", "recovered", "samples",
    "seeds", "basis",
)  # fmt: skip
# How far below float a setting may be, in accuracy.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Setting:
    """One setting of the core: tile 1 is direct convolution (PCNNA), others are Winograd's m."""

    tile: int
    weight_bits: int
    channels: int
    noise: float

    @property
    def design(self) -> str:
        """``pcnna`` or ``winograd``."""
        return "pcnna" if self.tile == 1 else "winograd"

    def core(self, model: nn.Module, device_set: str) -> nn.Module:
        """`model` on this core."""
        return to_photonic(
            model,
            device_set,
            tile=None if self.tile == 1 else self.tile,
            channels=self.channels,
            weight_bits=self.weight_bits,
            noise=self.noise,
        )


def grid(
    tiles: Iterable[int], weight_bits: Iterable[int], channels: Iterable[int], noise: Iterable[float]
) -> list[Setting]:
    """Return every combination."""
    return [Setting(*values) for values in itertools.product(tiles, weight_bits, channels, noise)]


def evaluate(
    model: nn.Module, settings: Sequence[Setting], device_set: str, *, seeds: int, images: int
) -> pd.DataFrame:
    """Return a row per setting with the columns COLUMNS.

    `accuracy` is the mean over noise seeds; `ci_low` and `ci_high` are its 95 % t interval over them, zero wide where
    there is no noise. `test_ci_*` is the 95 % Wilson interval of the test set's size, at that accuracy.
    """
    pixels, labels, exact = _tested(model, digits.load(), images)
    devices = load_devices(device_set)
    conversion = devices.si("adc_fom") * 2 ** load_physics(devices).detector_bits
    rows = []
    for setting in track(settings, "settings of the core"):
        noisy = setting.core(model, device_set)
        scores = _scores(noisy, pixels, labels, seeds if setting.noise > 0 else 1)
        mean, low, high = interval(scores)
        test_low, test_high = wilson(mean, len(labels))
        samples = detector_samples(noisy, pixels[:1])
        rows.append(
            {
                **_names(setting),
                "accuracy": mean,
                "ci_low": low,
                "ci_high": high,
                "accuracy_float": exact,
                "samples": len(labels),
                "seeds": len(scores),
                "test_ci_low": test_low,
                "test_ci_high": test_high,
                "detector_samples": samples,
                "adc_energy_j": samples * conversion,
                "basis": "simulated",
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cheapest(table: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Return for each design the cheapest noisy setting whose mean accuracy is within `tolerance` of float.

    Cheapest: fewest detector samples (ADC conversions) per image, then fewest weight bits, then most noise borne.
    A design that has none is absent.
    """
    good = table[(table["noise"] > 0) & (table["accuracy"] >= table["accuracy_float"] - tolerance - 1e-12)]
    order = good.sort_values(["detector_samples", "weight_bits", "noise"], ascending=[True, True, False], kind="stable")
    return order.groupby("design", sort=True).head(1).sort_values("design").reset_index(drop=True)


def fine_tune(
    model: nn.Module,
    settings: Sequence[Setting],
    device_set: str,
    training: digits.Training,
    *,
    seeds: int,
    images: int,
) -> pd.DataFrame:
    """Train copies of `model` through the noisy core and return what each recovers, columns FINE_TUNE_COLUMNS.

    `recovered` is the share of the lost accuracy that came back; NaN where nothing was lost. Intervals are as those
    of :func:`evaluate`: over noise seeds, for this one training.
    """
    shown = digits.load()
    pixels, labels, exact = _tested(model, shown, images)
    rows = []
    for setting in track(settings, "settings of the core"):
        noisy = setting.core(model, device_set)
        before, before_low, before_high = interval(_scores(noisy, pixels, labels, seeds))
        reseed(noisy, seeds + training.seed)
        digits.train(noisy, shown, training)
        after, after_low, after_high = interval(_scores(noisy, pixels, labels, seeds))
        rows.append(
            {
                **_names(setting),
                "accuracy_before": before,
                "before_ci_low": before_low,
                "before_ci_high": before_high,
                "accuracy_after": after,
                "after_ci_low": after_low,
                "after_ci_high": after_high,
                "accuracy_float": exact,
                "recovered": (after - before) / (exact - before) if exact > before else math.nan,
                "samples": len(labels),
                "seeds": seeds,
                "basis": "simulated",
            }
        )
    return pd.DataFrame(rows, columns=list(FINE_TUNE_COLUMNS))


def spoiled(table: pd.DataFrame, low: float = 0.5) -> list[Setting]:
    """Return for each tile the noisy setting worth fine-tuning: the worst that still classifies `low` rightly."""
    lost = table[(table["noise"] > 0) & (table["accuracy"] >= low)].sort_values("accuracy", kind="stable")
    if lost.empty:
        raise UserError(f"no noisy setting keeps an accuracy of {low:g}: evaluate less noise or more weight bits")
    worst = lost.groupby("tile", sort=True).head(1).sort_values("tile")
    return [Setting(int(r.tile), int(r.weight_bits), int(r.channels), float(r.noise)) for r in worst.itertuples()]  # type: ignore[arg-type]


def detector_samples(model: nn.Module, image: Tensor) -> int:
    """Return the detector samples (ADC conversions) that one image takes in `model`'s photonic layers."""
    count = 0

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal count
        assert isinstance(layer, PhotonicConv2d | PhotonicLinear)
        inputs = layer.weight[0].numel()
        outputs = output[0].numel()
        if isinstance(layer, PhotonicConv2d) and layer.tiling is not None:
            tiling, (height, width) = layer.tiling, output.shape[2:]
            tiles = math.ceil(height / tiling.m) * math.ceil(width / tiling.m)
            inputs = layer.weight.shape[1] * tiling.stride**2
            outputs = layer.out_channels * tiles * tiling.side**2
        count += outputs * math.ceil(inputs / layer.core.channels)

    hooks = [layer.register_forward_hook(record) for layer in photonic_layers(model)]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return count


def interval(scores: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high of a t interval over independent scores, kept within [0, 1]."""
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf((1 + level) / 2, len(scores) - 1) * stats.sem(scores))
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial share."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def _tested(model: nn.Module, shown: digits.Digits, images: int) -> tuple[Tensor, Tensor, float]:
    """The first test images, their labels, and the accuracy of `model` itself on them."""
    pixels, labels = shown.test_images[:images], shown.test_labels[:images]
    return pixels, labels, float(digits.correct(model, pixels, labels).float().mean())


def _scores(model: nn.Module, pixels: Tensor, labels: Tensor, seeds: int) -> list[float]:
    found = []
    for seed in range(seeds):
        reseed(model, seed)
        found.append(float(digits.correct(model, pixels, labels).double().mean()))
    return found


def _names(setting: Setting) -> dict[str, object]:
    return {
        "network": digits.NETWORK,
        "dataset": digits.DATASET,
        "design": setting.design,
        "tile": setting.tile,
        "weight_bits": setting.weight_bits,
        "channels": setting.channels,
        "noise": setting.noise,
    }
