"""`lumoe photonics`: the physics of the core, and a network's accuracy on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

DevicesOption = Annotated[str, typer.Option(help="a device set, or a .yaml file of your own")]
OutputOption = Annotated[Path, typer.Option(help="the table to write")]
ModelOption = Annotated[Path, typer.Option(help="the trained digits network (.safetensors)")]
SeedsOption = Annotated[int, typer.Option(min=1, help="noise seeds")]
ImagesOption = Annotated[int, typer.Option(min=1, help="test images")]
SeedOption = Annotated[int, typer.Option(min=0)]
RateOption = Annotated[float, typer.Option(min=1e-9)]
EpochsOption = Annotated[int, typer.Option(min=1)]
ThreadsOption = Annotated[int, typer.Option(min=1, help="of torch: results depend on it in their last bits")]


def _settle(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


@app.command("physics")
def tabulate_physics(
    spectrum: Annotated[Path, typer.Option(help="through, drop and weight of the ring")],
    bits: Annotated[Path, typer.Option(help="effective bits over power and rate")],
    sizes: Annotated[Path, typer.Option(help="largest N = M of the link")],
    weights: Annotated[Path, typer.Option(help="weight error over channel spacing")],
    devices: DevicesOption = "moderate",
    seed: SeedOption = 0,
) -> None:
    """Tabulate ring, detector, link and weight bank of a device set.

    Example: `lumoe photonics physics --spectrum ring.csv --bits bits.csv --sizes sizes.csv --weights weights.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.physics import tables as sweeps
    from lumoe.photonics.physics.parameters import load_physics

    _settle(1)
    physics = load_physics(devices)
    write_csv(spectrum, sweeps.ring_spectrum(physics))
    write_csv(bits, sweeps.detector_bits(physics))
    write_csv(sizes, sweeps.link_sizes(physics))
    write_csv(weights, sweeps.weight_errors(physics, seed=seed))


@app.command("train-digits")
def train_digits(
    output: Annotated[Path, typer.Option(help="the trained network (.safetensors)")],
    epochs: EpochsOption = 40,
    learning_rate: RateOption = 5e-3,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Train a CNN on scikit-learn's digits and print its accuracy.

    Example: `lumoe photonics train-digits --output digits.safetensors`
    """
    from lumoe.photonics.accuracy import digits

    _settle(threads)
    model = digits.trained(epochs=epochs, learning_rate=learning_rate, seed=seed)
    shown = digits.load()
    accuracy = digits.correct(model, shown.test_images, shown.test_labels).float().mean()
    digits.save(model, output)
    typer.echo(f"accuracy {float(accuracy):.4f} on {len(shown.test_labels)} test images")


@app.command("accuracy")
def evaluate_accuracy(
    model: ModelOption,
    output: OutputOption,
    weight_bits: Annotated[list[int], typer.Option(min=1, help="one or more")],
    channels: Annotated[list[int], typer.Option(min=1, help="one or more")],
    noise: Annotated[list[float], typer.Option(min=0, help="one or more")],
    tile: Annotated[list[int], typer.Option(min=1, help="one or more; 1 is direct convolution")],
    devices: DevicesOption = "moderate",
    seeds: SeedsOption = 3,
    images: ImagesOption = 599,
    threads: ThreadsOption = 1,
) -> None:
    """Evaluate the digits network over every combination of the options.

    Example: `lumoe photonics accuracy --model digits.safetensors --tile 1 --weight-bits 4 --channels 16 --noise 0
    --noise 1 --output accuracy.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accuracy import digits
    from lumoe.photonics.accuracy import evaluate as accuracy

    _settle(threads)
    settings = accuracy.grid(tile, weight_bits, channels, noise)
    table = accuracy.evaluate(digits.read(model), settings, devices, seeds=seeds, images=images)
    write_csv(output, table, accuracy.COLUMNS)


@app.command("join-accuracy")
def join_accuracy(
    table: Annotated[list[Path], typer.Option(help="one or more tables of `lumoe photonics accuracy`")],
    output: OutputOption,
    cheapest: Annotated[Path, typer.Option(help="the cheapest setting within one point of float")],
) -> None:
    """Join tables of accuracy and find each design's cheapest setting within one point of float.

    Example: `lumoe photonics join-accuracy --table tile-1.csv --table tile-2.csv --output accuracy.csv --cheapest
    cheapest.csv`
    """
    import pandas as pd

    from lumoe.files import read_csv, write_csv
    from lumoe.photonics.accuracy import evaluate as accuracy

    joined = pd.concat([read_csv(path, accuracy.COLUMNS) for path in table], ignore_index=True)
    write_csv(output, joined, accuracy.COLUMNS)
    write_csv(cheapest, accuracy.cheapest(joined), accuracy.COLUMNS)


@app.command("fine-tune")
def fine_tune(
    model: ModelOption,
    table: Annotated[Path, typer.Option(help="accuracy of every setting; the worst of each tile is trained")],
    output: OutputOption,
    devices: DevicesOption = "moderate",
    epochs: EpochsOption = 4,
    learning_rate: RateOption = 5e-3,
    seeds: SeedsOption = 3,
    images: ImagesOption = 599,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Train the digits network through the noisy core and tell how much of the lost accuracy comes back.

    Example: `lumoe photonics fine-tune --model digits.safetensors --table accuracy.csv --output fine-tuned.csv`
    """
    from lumoe.files import read_csv, write_csv
    from lumoe.photonics.accuracy import digits
    from lumoe.photonics.accuracy import evaluate as accuracy

    _settle(threads)
    worst = accuracy.spoiled(read_csv(table, accuracy.COLUMNS))
    trained = accuracy.fine_tune(
        digits.read(model),
        worst,
        devices,
        epochs=epochs,
        learning_rate=learning_rate,
        seeds=seeds,
        images=images,
        seed=seed,
    )
    write_csv(output, trained, accuracy.FINE_TUNE_COLUMNS)
