"""Time one fully connected layer in AnalogVNN; run by photonics_core.py with the interpreter that has AnalogVNN.

Usage: ``python benchmarks/analogvnn_layer.py --rows 1 --width 4096 --threads 2 --repeats 5``. Prints JSON: the smallest
wall time in seconds of the layer with its signal's converters and noise (`signal`), and of the same with converters and
noise on the weights as well (`weights`), as AnalogVNN's own example sets up a network.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from analogvnn.nn.Linear import Linear
from analogvnn.nn.module.FullSequential import FullSequential
from analogvnn.nn.noise.GaussianNoise import GaussianNoise
from analogvnn.nn.normalize.Clamp import Clamp
from analogvnn.nn.precision.ReducePrecision import ReducePrecision
from analogvnn.parameter.PseudoParameter import PseudoParameter

LEVELS = 2**8 - 1
LEAKAGE = 0.5


def before() -> list[torch.nn.Module]:
    """What AnalogVNN's example puts before a layer and on its weights: normalisation, converter and noise."""
    return [Clamp(), ReducePrecision(precision=LEVELS), GaussianNoise(leakage=LEAKAGE, precision=LEVELS)]


def after() -> list[torch.nn.Module]:
    """What it puts after a layer."""
    return [GaussianNoise(leakage=LEAKAGE, precision=LEVELS), Clamp(), ReducePrecision(precision=LEVELS)]


def smallest(network: FullSequential, rows: torch.Tensor, repeats: int) -> float:
    """The smallest wall time of `repeats` passes, after one to warm up."""
    network(rows)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        network(rows)
        times.append(time.perf_counter() - start)
    return min(times)


def network_of(layer: Linear) -> FullSequential:
    """The layer between its converters."""
    network = FullSequential()
    network.add_sequence(*before(), layer, *after())
    network.compile(layer_data=False)
    return network.eval()


@torch.no_grad()
def main() -> None:
    """Time both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rows": 1, "width": 4096, "threads": 2, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = torch.rand(arguments.rows, arguments.width)
    layer = Linear(arguments.width, arguments.width, bias=False)
    signal = smallest(network_of(layer), rows, arguments.repeats)
    weights = FullSequential()
    weights.add_sequence(*before())
    weights.compile(layer_data=False)
    PseudoParameter.parametrize_module(layer, transformation=weights.eval())
    print(json.dumps({"signal": signal, "weights": smallest(network_of(layer), rows, arguments.repeats)}))


if __name__ == "__main__":
    main()
