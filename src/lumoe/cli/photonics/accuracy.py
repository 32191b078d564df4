"""`lumoe photonics train-digits`, `accuracy`, `join-accuracy`, `fine-tune`: digits through the noisy core."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import DevicesOption, ExactThreadsOption, OutputOption, SeedOption, use_exact_threads

app = typer.Typer(no_args_is_help=True)

DigitsOption = Annotated[Path, typer.Option("--model", help="the trained digits network (.safetensors)")]
SeedsOption = Annotated[int, typer.Option(min=1, help="noise seeds")]
ImagesOption = Annotated[int, typer.Option(min=1, help="test images")]
RateOption = Annotated[float, typer.Option(min=1e-9)]
EpochsOption = Annotated[int, typer.Option(min=1)]


@app.command("train-digits")
def train_digits(
    output: Annotated[Path, typer.Option(help="the trained network (.safetensors)")],
    epochs: EpochsOption = 40,
    learning_rate: RateOption = 5e-3,
    seed: SeedOption = 0,
    threads: ExactThreadsOption = 1,
) -> None:
    """Train a CNN on scikit-learn's digits and print its accuracy.

    Example: `lumoe photonics train-digits --output digits.safetensors`
    """
    from lumoe.photonics.accuracy import digits

    use_exact_threads(threads)
    model = digits.trained(digits.Training(epochs, learning_rate, seed))
    shown = digits.load()
    accuracy = digits.correct(model, shown.test_images, shown.test_labels).float().mean()
    digits.save(model, output)
    typer.echo(f"accuracy {float(accuracy):.4f} on {len(shown.test_labels)} test images")


@app.command("accuracy")
def evaluate_accuracy(
    model: DigitsOption,
    output: OutputOption,
    weight_bits: Annotated[list[int], typer.Option(min=1, help="one or more")],
    channels: Annotated[list[int], typer.Option(min=1, help="one or more")],
    noise: Annotated[list[float], typer.Option(min=0, help="one or more")],
    tile: Annotated[list[int], typer.Option(min=1, help="one or more; 1 is direct convolution")],
    devices: DevicesOption = "moderate",
    seeds: SeedsOption = 3,
    images: ImagesOption = 599,
    threads: ExactThreadsOption = 1,
) -> None:
    """Evaluate the digits network over every combination of the options.

    Example: `lumoe photonics accuracy --model digits.safetensors --tile 1 --weight-bits 4 --channels 16 --noise 0
    --noise 1 --output accuracy.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.accuracy import digits
    from lumoe.photonics.accuracy import evaluate as accuracy

    use_exact_threads(threads)
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
    model: DigitsOption,
    table: Annotated[Path, typer.Option(help="accuracy of every setting; the worst of each tile is trained")],
    output: OutputOption,
    devices: DevicesOption = "moderate",
    epochs: EpochsOption = 4,
    learning_rate: RateOption = 5e-3,
    seeds: SeedsOption = 3,
    images: ImagesOption = 599,
    seed: SeedOption = 0,
    threads: ExactThreadsOption = 1,
) -> None:
    """Train the digits network through the noisy core and tell how much of the lost accuracy comes back.

    Example: `lumoe photonics fine-tune --model digits.safetensors --table accuracy.csv --output fine-tuned.csv`
    """
    from lumoe.files import read_csv, write_csv
    from lumoe.photonics.accuracy import digits
    from lumoe.photonics.accuracy import evaluate as accuracy

    use_exact_threads(threads)
    worst = accuracy.spoiled(read_csv(table, accuracy.COLUMNS))
    training = digits.Training(epochs, learning_rate, seed)
    trained = accuracy.fine_tune(digits.read(model), worst, devices, training, seeds=seeds, images=images)
    write_csv(output, trained, accuracy.FINE_TUNE_COLUMNS)
