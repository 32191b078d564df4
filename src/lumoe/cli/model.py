"""`lumoe model`: train a small Mixtral, check and describe a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from lumoe.cli.options import CsvOption, ForceOption, JsonOption, check_free
from lumoe.cli.tables import for_programs, show
from lumoe.pipeline.settings import Training

app = typer.Typer(no_args_is_help=True)
# The shipped model's; a pipeline that trains one takes the same.
DEFAULT = Training()


@app.callback()
def _model() -> None:
    """Train and describe Mixtral-architecture models."""


@app.command()
def train(
    corpus: list[Path] = typer.Option(help="corpus folders; their train splits are trained on"),
    output: Path = typer.Option(help="model folder to write"),
    vocabulary: int = typer.Option(DEFAULT.vocabulary, min=300),
    hidden: int = typer.Option(DEFAULT.hidden, min=8),
    intermediate: int = typer.Option(DEFAULT.intermediate, min=8),
    layers: int = typer.Option(DEFAULT.layers, min=1),
    heads: int = typer.Option(DEFAULT.heads, min=1),
    key_value_heads: int = typer.Option(DEFAULT.key_value_heads, min=1),
    experts: int = typer.Option(DEFAULT.experts, min=2),
    sequence: int = typer.Option(DEFAULT.sequence, min=8, help="tokens per training sequence"),
    batch: int = typer.Option(DEFAULT.batch, min=1, help="sequences per step"),
    steps: int = typer.Option(DEFAULT.steps, min=1),
    learning_rate: float = typer.Option(DEFAULT.learning_rate, min=0.0),
    warmup: int = typer.Option(DEFAULT.warmup, min=0, help="steps of rising learning rate"),
    decay: float = typer.Option(DEFAULT.decay, min=0.0, max=1.0, help="share of the steps in which it falls to zero"),
    weight_decay: float = typer.Option(DEFAULT.weight_decay, min=0.0),
    balance: float = typer.Option(DEFAULT.balance, min=0.0, help="weight of the load-balancing loss"),
    final_balance: float = typer.Option(DEFAULT.final_balance, min=0.0, help="its weight at the end of the decay"),
    seed: int = typer.Option(0, min=0),
    threads: int = typer.Option(1, min=1),
    checkpoint: Path | None = typer.Option(None, help="state of training: a killed run resumes from it"),
    force: ForceOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Train a model on corpora; print losses as it goes and the held-out perplexities at the end.

    Example: `lumoe model train --corpus corpora/scipy --output my-model --steps 500 --checkpoint my-model.state`
    """
    import sys

    import torch

    from lumoe.errors import UserError
    from lumoe.moe.training.make_model import train_model
    from lumoe.moe.training.train import Progress, TrainingSettings
    from lumoe.progress import quiet

    if hidden % heads or heads % key_value_heads:
        raise UserError(
            f"heads {heads}, key-value heads {key_value_heads}: hidden ({hidden}) must be a multiple of heads, "
            "and heads of key-value heads"
        )
    check_free(output, force, "config.json")
    torch.set_num_threads(threads)

    def report(progress: Progress) -> None:
        if progress.step % 50 == 0 and not quiet():
            print(f"step {progress.step}: loss {progress.loss:.3f}, balance {progress.balance:.3f}", file=sys.stderr)

    settings = TrainingSettings(
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        experts=experts,
        sequence=sequence,
        batch=batch,
        steps=steps,
        learning_rate=learning_rate,
        warmup=warmup,
        decay=decay,
        weight_decay=weight_decay,
        balance=balance,
        final_balance=final_balance,
        seed=seed,
    )
    record = train_model(
        {folder.name: folder for folder in corpus}, output, settings, checkpoint=checkpoint, report=report
    )
    _print_held_out(record, as_json, as_csv)


@app.command()
def check(
    model: Path = typer.Option(help="model folder with manifest.json and training.json"),
    corpus: list[Path] = typer.Option(help="corpus folders; their test splits are scored"),
    output: Path = typer.Option(help="JSON file to write"),
    window: int = typer.Option(256, min=8, help="tokens per window"),
    windows: int = typer.Option(128, min=1, help="windows per corpus"),
    threads: int = typer.Option(1, min=1),
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Verify a model's files, score it beside a trigram, and say whether its corpora are those it was trained on.

    Example: `lumoe model check --model data/models/mini-mixtral --corpus corpora/scipy --output model.json`
    """
    import sys

    import torch

    from lumoe.files import write_json
    from lumoe.moe.training.check_model import check_model, differences

    torch.set_num_threads(threads)
    corpora = {folder.name: folder for folder in corpus}
    found = check_model(model, corpora, window, windows)
    for sentence in differences(model, corpora, found["same_corpora"]):
        print(f"warning: {sentence}", file=sys.stderr)
    write_json(output, {"model": model.name, **found})
    _print_held_out(found, as_json, as_csv)


def _print_held_out(record: Mapping[str, Any], as_json: bool, as_csv: bool) -> None:
    """Print the held-out perplexities, one row a corpus, and how small the share of the least used expert is."""
    import pandas as pd

    table = pd.DataFrame([{"corpus": name, **row} for name, row in record["held_out"].items()])
    if not for_programs(table, as_json, as_csv):
        least = record["least_expert_share"]
        show(table, f"Held-out perplexity; the least used expert has {least:.2f} of its fair share")


@app.command()
def fetch(
    repository: str = typer.Argument(help="OWNER/NAME on the Hugging Face hub"),
    output: Path = typer.Option(help="model folder to write"),
    force: ForceOption = False,
) -> None:
    """Download a Mixtral checkpoint (safetensors, configuration, tokenizer) and record its files' SHA-256.

    Example: `lumoe model fetch mistralai/Mixtral-8x7B-v0.1 --output models/mixtral`
    """
    from huggingface_hub import snapshot_download

    from lumoe.errors import UserError
    from lumoe.files import atomic_path
    from lumoe.moe.checkpoint.manifest import write_manifest

    check_free(output, force, "config.json")
    with atomic_path(output) as folder:
        try:
            snapshot_download(repository, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "tokenizer*"])
        except Exception as error:  # the hub's client raises a dozen unrelated types for one absent repository
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model 'hub:{repository}': cannot be downloaded ({reason}); check name and network"
            ) from None
        write_manifest(folder)


@app.command()
def record(
    model: Path = typer.Argument(help="model folder"),
) -> None:
    """Record the SHA-256 of every file of a model: from then on they are verified whenever the model is opened.

    Example: `lumoe model record my-model`
    """
    from lumoe.moe.checkpoint.manifest import NAME, write_manifest
    from lumoe.moe.checkpoint.weights import Checkpoint

    if not (model / NAME).exists():
        Checkpoint(model)
    write_manifest(model)
    typer.echo(model / NAME)
