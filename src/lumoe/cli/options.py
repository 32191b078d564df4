"""Options that several commands share: each is named, explained and bounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lumoe.errors import UserError

if TYPE_CHECKING:
    from lumoe.moe.planning.caching import CachePolicy, Caching, Scope

# Tables and figures.
JsonOption = Annotated[bool, typer.Option("--json", help="rows as JSON, for programs")]
CsvOption = Annotated[bool, typer.Option("--csv", help="rows as CSV, for programs")]
TableOption = Annotated[Path, typer.Option(help="the table to draw")]
FigureOption = Annotated[Path, typer.Option(help="the figure; .svg, .png and .csv are written")]
OutputOption = Annotated[Path, typer.Option(help="the table to write")]


def _folder(model: Path) -> Path:
    from lumoe.moe.checkpoint.gguf_file import model_folder

    return model_folder(model)


# What takes hours to make is not replaced unasked.
ForceOption = Annotated[bool, typer.Option("--force", help="replace what is there")]

# Running a model.
ModelOption = Annotated[Path, typer.Option(callback=_folder, help="folder of a checkpoint, or a GGUF file")]
CorpusOption = Annotated[list[Path], typer.Option(help="corpus folder; repeat for several")]
QuantizedOption = Annotated[list[Path] | None, typer.Option(help="folder of quantised experts; repeat for several")]
DtypeOption = Annotated[Literal["bfloat16", "float32"], typer.Option(help="type of the activations")]
DeviceOption = Annotated[str, typer.Option(help="where the model runs: cpu, cuda or cuda:N")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="threads that torch uses; 0: its own choice")]
# Where a table's last digits depend on the number of threads, it is always stated.
ExactThreadsOption = Annotated[int, typer.Option(min=1, help="threads; the last digits depend on their number")]
SeedOption = Annotated[int, typer.Option(min=0)]
PolicyOption = Annotated[
    Literal["auto", "static", "lru", "lfru"],
    typer.Option(
        help="whether a missed expert may take another's place: the least recently or the least often used; auto is "
        "what `lumoe moe residency` found best for this model, else lru"
    ),
]
ScopeOption = Annotated[
    Literal["layer", "model"] | None,
    typer.Option("--cache-scope", help="whose place it may take: of its own layer (the default), or any"),
]
HalfLifeOption = Annotated[
    float | None, typer.Option(help="lfru: steps after which a use counts half; 128 by default", show_default=False)
]
PrefetchOption = Annotated[int, typer.Option(min=0, help="experts of the next layer to guess and read ahead")]
PromptOption = Annotated[int, typer.Option(min=1, help="tokens in")]
NewOption = Annotated[int, typer.Option(min=1, help="tokens out")]

# Photonic accelerators.
NetworkOption = Annotated[str, typer.Option(help="a shipped network, your own MODULE:FACTORY, or a traced .json")]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="sides of one input without the batch, such as 3x224x224, or NAME:SHAPE:TYPE of a whole tensor, such as "
        "tokens:1x128:int64; may be repeated  [default: 3x224x224]",
    ),
]
DevicesOption = Annotated[str, typer.Option(help="a device set, or a .yaml file of your own")]


def check_free(output: Path, force: bool, mark: str | None = None) -> None:
    """Make sure before hours of work that its output does not replace what took as long.

    Args:
        mark: a file that folders of this kind have, where a folder is to be written; None for a file.

    Raises:
        UserError: there is something and it is not to be replaced, or it is of another kind.
    """
    if not output.exists() or (mark is not None and output.is_dir() and not any(output.iterdir())):
        return
    if mark is None and output.is_dir():
        raise UserError(f"{output}: is a folder; name a file to write")
    if mark is not None and not (output / mark).is_file():
        raise UserError(f"{output}: is there already, but not a folder with {mark}; choose another --output")
    if not force:
        raise UserError(f"{output}: is there already; choose another --output, or replace it with --force")


def caching_of(
    policy: CachePolicy | Literal["auto"],
    scope: Scope | None,
    half_life: float | None,
    prefetch: int,
    usual: Callable[[], Caching],
) -> Caching:
    """Return how the fast tier changes while it is used, from the options.

    Args:
        usual: says what `auto` stands for.

    Raises:
        UserError: an option does not go with the policy, or its value is none.
    """
    from lumoe.moe.planning.caching import Caching

    if half_life is not None and policy != "lfru":
        raise UserError(f"--half-life: policy {policy} forgets nothing by and by; give --policy lfru, or leave it out")
    if scope is not None and policy in ("auto", "static"):
        reason = "chooses for itself" if policy == "auto" else "gives up no place"
        raise UserError(f"--cache-scope: policy {policy} {reason}; give --policy lru or lfru, or leave it out")
    if policy == "auto":
        return replace(usual(), prefetch=prefetch)
    given = Caching(policy, scope or "layer", prefetch=prefetch)
    return given if half_life is None else replace(given, half_life=half_life)


def use_threads(threads: int) -> None:
    """Let torch use that many threads; 0 leaves the choice to it."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def use_exact_threads(threads: int) -> None:
    """Let torch use that many threads and deterministic algorithms only: the same digits each time."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
