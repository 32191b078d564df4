"""Time the functional photonic core: AlexNet beside float32 torch, calibration, ring spectra beside sax, AnalogVNN.

Usage: ``python benchmarks/photonics_core.py [--output FILE.csv] [--threads 2]``. AnalogVNN is
compared if it is installed (``pip install analogvnn==1.0.8``, in an environment of its own: its pins are old).
Times are the smallest of several runs; process time stands beside wall time, since other work on the machine moves the
latter only.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from lumoe.files import write_csv
from lumoe.photonics.conv import photonic_layers, to_photonic
from lumoe.photonics.core import Core, hold
from lumoe.photonics.parameters import load_physics
from lumoe.photonics.zoo import NETWORKS


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the smallest wall time and the smallest process time of `repeats` calls, after one to warm up."""
    call()
    wall, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return min(wall), min(busy)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    """Return AlexNet's convolutional part and one 224×224 image."""
    model = NETWORKS["alexnet"]().eval()
    layers = [layer for layer in model.modules() if not list(layer.children())]
    first_linear = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    kept = [layer for layer in layers[:first_linear] if not isinstance(layer, nn.Flatten | nn.Dropout)]
    return nn.Sequential(*kept), torch.rand(1, 3, 224, 224)


@torch.no_grad()
def forward_pass(repeats: int) -> list[dict[str, object]]:
    """AlexNet's convolutions: float32, and through the core with every imperfection on."""
    model, image = convolutions()
    rows: list[dict[str, object]] = []
    exact, exact_busy = timed(lambda: model(image), repeats)
    rows.append({"what": "AlexNet convolutions, float32", "wall_s": exact, "process_s": exact_busy, "ratio": 1.0})
    for tile in (None, 2):
        noisy = to_photonic(model, "moderate", tile=tile)
        wall, busy = timed(lambda noisy=noisy: noisy(image), repeats)  # type: ignore[misc]
        name = "direct" if tile is None else f"Winograd m={tile}"
        rows.append(
            {
                "what": f"AlexNet convolutions, photonic, {name}",
                "wall_s": wall,
                "process_s": busy,
                "ratio": busy / exact_busy,
                "layers": len(photonic_layers(noisy)),
            }
        )
    return rows


def calibration() -> list[dict[str, object]]:
    """Every bank of AlexNet's convolutions, calibrated."""
    model, _ = convolutions()
    core = Core.real(load_physics())
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    grouped = [weight.reshape(1, weight.shape[0], -1) for weight in weights]
    start, busy = time.perf_counter(), time.process_time()
    for weight in grouped:
        hold(weight, core)
    return [
        {
            "what": f"calibration of {sum(weight.numel() for weight in weights):,} rings",
            "wall_s": time.perf_counter() - start,
            "process_s": time.process_time() - busy,
        }
    ]


def spectra(repeats: int) -> list[dict[str, object]]:
    """A ring's spectrum of 20 001 points beside sax's circuit of the same ring."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "photonics"))
    from sax_ring import add_drop_circuit, spectrum

    ring, circuit = load_physics().ring, add_drop_circuit()
    wavelength = np.linspace(1.53e-6, 1.57e-6, 20_001)
    tensor = torch.from_numpy(wavelength)
    ours, ours_busy = timed(lambda: ring.spectrum(tensor), repeats * 10)
    theirs, theirs_busy = timed(lambda: spectrum(circuit, ring, wavelength), repeats)
    return [
        {"what": "ring spectrum, lumoe", "wall_s": ours, "process_s": ours_busy, "ratio": 1.0},
        {"what": "ring spectrum, sax", "wall_s": theirs, "process_s": theirs_busy, "ratio": theirs / ours},
    ]


@torch.no_grad()
def peer(repeats: int) -> list[dict[str, object]]:
    """A 4096×4096 linear layer of 64 rows beside AnalogVNN's, both with reduced precision and Gaussian noise."""
    rows = torch.rand(64, 4096)
    layer = nn.Linear(4096, 4096, bias=False)
    noisy = to_photonic(layer, "moderate")
    wall, busy = timed(lambda: noisy(rows), repeats)
    found: list[dict[str, object]] = [{"what": "linear 4096, lumoe", "wall_s": wall, "process_s": busy, "ratio": 1.0}]
    try:
        from analogvnn.nn.Linear import Linear  # type: ignore[import-not-found]
        from analogvnn.nn.noise.GaussianNoise import GaussianNoise  # type: ignore[import-not-found]
        from analogvnn.nn.precision.ReducePrecision import ReducePrecision  # type: ignore[import-not-found]
    except ImportError:
        found.append({"what": "linear 4096, AnalogVNN: not installed"})
        return found
    parts = [ReducePrecision(precision=255), Linear(4096, 4096, bias=False), GaussianNoise(leakage=0.5, precision=255),
             ReducePrecision(precision=255)]  # fmt: skip

    def theirs() -> torch.Tensor:
        signal = rows
        for part in parts:
            signal = part(signal)
        return signal

    wall_theirs, busy_theirs = timed(theirs, repeats)
    found.append(
        {"what": "linear 4096, AnalogVNN", "wall_s": wall_theirs, "process_s": busy_theirs, "ratio": wall_theirs / wall}
    )
    return found


def main() -> None:
    """Run every benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/measured/photonics_core.csv"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [*spectra(arguments.repeats), *calibration(), *forward_pass(arguments.repeats), *peer(arguments.repeats)]
    table = pd.DataFrame(rows)
    table["threads"] = arguments.threads
    table["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table["basis"] = "measured"
    write_csv(arguments.output, table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
