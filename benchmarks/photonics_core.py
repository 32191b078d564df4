"""Time the functional photonic core: AlexNet beside float32 torch, calibration, ring spectra beside sax, AnalogVNN.

Usage: ``python benchmarks/photonics_core.py [--output FILE.csv] [--threads 2] [--peer-python PYTHON]``. AnalogVNN runs
in an interpreter of its own: ``python -m venv build/peer && build/peer/bin/python -m pip install torch==2.13.0
analogvnn==1.0.8``, then ``--peer-python build/peer/bin/python``. Times are the smallest of several runs, with what is
compared in turn; process time stands beside wall time, since other work on the machine moves the latter only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lumoe.files import write_csv
from lumoe.photonics.accuracy.evaluate import detector_samples
from lumoe.photonics.core.core import Core, hold
from lumoe.photonics.core.layers import to_photonic
from lumoe.photonics.network.zoo import NETWORKS
from lumoe.photonics.physics.parameters import load_physics

HERE = Path(__file__).parent


def timed(calls: Sequence[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
    """Return each call's smallest wall time and process time of `repeats` rounds, after one round to warm up."""
    found = [(float("inf"), float("inf"))] * len(calls)
    for call in calls:
        call()
    for _ in range(repeats):
        for index, call in enumerate(calls):
            start, busy = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - start, time.process_time() - busy
            found[index] = (min(found[index][0], spent[0]), min(found[index][1], spent[1]))
    return found


def convolutions(model: nn.Module) -> nn.Sequential:
    """Return the convolutional part of AlexNet."""
    return nn.Sequential(*list(model.children())[:13])


def row(what: str, times: tuple[float, float], beside: tuple[float, float], **more: object) -> dict[str, object]:
    """Return a row of the table; `ratio` is the wall time over that of `beside`."""
    return {"what": what, "wall_s": times[0], "process_s": times[1], "ratio": times[0] / beside[0], **more}


@torch.no_grad()
def forward_pass(repeats: int) -> list[dict[str, object]]:
    """AlexNet, one image: in float32, and through the core with every imperfection on."""
    model, image = NETWORKS["alexnet"]().eval(), torch.rand(1, 3, 224, 224)
    part = convolutions(model)
    rows: list[dict[str, object]] = []
    kinds: dict[str, dict[str, Any]] = {"direct": {}, "direct, noise off": {"noise": 0.0}, "Winograd m=2": {"tile": 2}}
    for name, exact, used in (("AlexNet's convolutions", part, kinds), ("AlexNet", model, {"direct": {}})):
        cores = [to_photonic(exact, "moderate", **options) for options in used.values()]
        start = time.perf_counter()
        cores[0](image)
        first = time.perf_counter() - start
        times = timed([lambda run=run: run(image) for run in (exact, *cores)], repeats)  # type: ignore[misc]
        rows.append(row(f"{name}, float32", times[0], times[0]))
        for kind, core, found in zip(used, cores, times[1:], strict=True):
            more = {"first_pass_s": first} if kind == "direct" else {}
            samples = detector_samples(core, image)
            rows.append(row(f"{name}, photonic, {kind}", found, times[0], detector_samples=samples, **more))
    signal = image
    for layer in part:
        if isinstance(layer, nn.Conv2d):
            core = to_photonic(layer, "moderate")
            times = timed([lambda: layer(signal), lambda: core(signal)], repeats)  # noqa: B023
            what = f"convolution {layer.in_channels}-{layer.out_channels}, {layer.kernel_size[0]}x, photonic"
            rows.append(row(what, times[1], times[0], detector_samples=detector_samples(core, signal)))
        signal = layer(signal)
    return rows


def calibration() -> list[dict[str, object]]:
    """Every bank of AlexNet's convolutions calibrated: grouped as on its two GPUs, and ungrouped as PCNNA counts it."""
    core, rows = Core.real(load_physics()), []
    for name in ("alexnet", "alexnet-ungrouped"):
        weights = [layer.weight.detach() for layer in NETWORKS[name]().modules() if isinstance(layer, nn.Conv2d)]
        start, busy = time.perf_counter(), time.process_time()
        for weight in weights:
            hold(weight.reshape(1, weight.shape[0], -1), core)
        rows.append(
            {
                "what": f"calibration of the {sum(weight.numel() for weight in weights):,} rings of {name}",
                "wall_s": time.perf_counter() - start,
                "process_s": time.process_time() - busy,
            }
        )
    return rows


def spectra(repeats: int) -> list[dict[str, object]]:
    """A ring's spectrum of 20 001 points beside sax's circuit of the same ring, plain and compiled by jax."""
    sys.path.insert(0, str(HERE.parent / "tests" / "photonics" / "physics"))
    import jax
    from sax_ring import add_drop_circuit, spectrum

    ring, circuit = load_physics().ring, add_drop_circuit()
    wavelength = np.linspace(1.53e-6, 1.57e-6, 20_001)
    tensor = torch.from_numpy(wavelength)
    start = time.perf_counter()
    compiled = jax.jit(circuit)
    spectrum(compiled, ring, wavelength)
    first = time.perf_counter() - start
    ours, plain, jitted = timed(
        [
            lambda: [ring.spectrum(tensor) for _ in range(10)],
            lambda: spectrum(circuit, ring, wavelength),
            lambda: spectrum(compiled, ring, wavelength),
        ],
        repeats,
    )
    ours = (ours[0] / 10, ours[1] / 10)
    return [
        row("ring spectrum, lumoe", ours, ours),
        row("ring spectrum, sax", plain, ours),
        row("ring spectrum, sax compiled by jax", jitted, ours, first_pass_s=first),
    ]


@torch.no_grad()
def peer(repeats: int, threads: int, python: str | None, rows: int = 1, width: int = 4096) -> list[dict[str, object]]:
    """A fully connected layer beside AnalogVNN's, all with 8-bit converters and Gaussian noise."""
    layer, inputs = nn.Linear(width, width, bias=False), torch.rand(rows, width)
    noisy = to_photonic(layer, "moderate")
    exact, ours = timed([lambda: layer(inputs), lambda: noisy(inputs)], repeats)
    name = f"linear {width}, {rows} row{'s' * (rows > 1)}"
    samples = detector_samples(noisy, inputs[:1]) * rows
    found = [row(f"{name}, float32", exact, ours), row(f"{name}, photonic", ours, ours, detector_samples=samples)]
    if python is None:
        return found
    options = {"--rows": rows, "--width": width, "--threads": threads, "--repeats": repeats}
    words = [str(word) for pair in options.items() for word in pair]
    run = subprocess.run(
        [python, str(HERE / "analogvnn_layer.py"), *words], check=True, stdout=subprocess.PIPE, text=True
    )
    for where, seconds in json.loads(run.stdout).items():
        what = "signal only" if where == "signal" else "signal and weights"
        found.append({"what": f"{name}, AnalogVNN, {what}", "wall_s": seconds, "ratio": seconds / ours[0]})
    return found


def main() -> None:
    """Run every benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/measured/photonics_core.csv"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peer-python", help="an interpreter that has AnalogVNN")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [*spectra(arguments.repeats), *calibration(), *forward_pass(arguments.repeats)]
    for count in (1, 64):
        rows += peer(arguments.repeats, arguments.threads, arguments.peer_python, count)
    table = pd.DataFrame(rows)
    table["threads"] = arguments.threads
    table["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    table["basis"] = "measured"
    write_csv(arguments.output, table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
