"""`lumoe moe quantize` and `quantizers`: make experts small, and compare the ways of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import CorpusOption, ForceOption, ModelOption, ThreadsOption, check_free, use_threads

app = typer.Typer(no_args_is_help=True)


@app.command()
def quantize(
    model: ModelOption,
    corpus: CorpusOption,
    output: Annotated[Path, typer.Option(help="folder that gets one file per expert and a manifest")],
    method: Annotated[str, typer.Option(help="gptq, rtn, nf4, or your own MODULE:FUNCTION")] = "gptq",
    bits: Annotated[int, typer.Option(help="2, 3, 4 or 8")] = 4,
    group_size: Annotated[int, typer.Option(min=2, help="weights that share a scale")] = 64,
    tokens: Annotated[int, typer.Option(min=128, help="calibration tokens, from the train splits")] = 32768,
    sequence: Annotated[int, typer.Option(min=16, help="tokens per calibration sequence")] = 256,
    least_tokens: Annotated[int, typer.Option(min=1, help="experts that see fewer are rounded to nearest")] = 128,
    seed: int = 0,
    force: Annotated[
        bool, typer.Option("--force", help="replace experts in the folder that were made another way")
    ] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Quantise all experts one by one; run again after an interruption, it goes on where it stopped.

    Experts that were made in the same way, of the same weights, are kept; a folder of others is refused.

    Example: `lumoe moe quantize --model data/models/mini-mixtral --corpus corpora/scipy --method gptq --bits 4
    --output quantized`
    """
    import logging
    from functools import partial

    from lumoe.moe.checkpoint.weights import Checkpoint
    from lumoe.moe.corpora.sequences import draw_sequences
    from lumoe.moe.quantization.quantize import Recipe, quantize
    from lumoe.progress import quiet

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    use_threads(threads)
    recipe = Recipe(method, bits, group_size, least_tokens)
    checkpoint = Checkpoint(model)
    ids = draw_sequences(model, corpus, tokens, sequence, seed)
    say = (lambda line: None) if quiet() else partial(typer.echo, err=True)
    table = quantize(checkpoint, ids, output, recipe, say, force)
    rounded = table[table["method"] != method]
    typer.echo(
        f"{len(table)} experts at {bits} bits in {output}: mean output error {table['relative_error'].mean():.4f}, "
        f"{len(rounded)} rounded to nearest for want of calibration tokens"
    )


@app.command()
def quantizers(
    model: ModelOption,
    quantized: Annotated[list[Path], typer.Option(help="folder of quantised experts; repeat for each to compare")],
    corpus: CorpusOption,
    output: Annotated[Path, typer.Option(help="the table")],
    window: Annotated[int, typer.Option(min=8, help="tokens per window")] = 256,
    windows: Annotated[int, typer.Option(min=1, help="windows per corpus, of its test split")] = 64,
    bootstrap: Annotated[int, typer.Option(min=100, help="resamples for the paired interval")] = 2000,
    seed: int = 0,
    threads: ThreadsOption = 0,
    force: ForceOption = False,
) -> None:
    """Compare quantisers: perplexity, bytes and seconds with all experts quantised.

    Example: `lumoe moe quantizers --model data/models/mini-mixtral --quantized quantized-gptq --quantized
    quantized-rtn --corpus corpora/scipy --output quantizers.csv`
    """
    from lumoe.files import write_csv
    from lumoe.moe.checkpoint.tokenize import tokenize
    from lumoe.moe.corpora.corpus import read_text
    from lumoe.moe.evaluation.perplexity import whole_windows
    from lumoe.moe.evaluation.quantizers import COLUMNS, compare_quantizers

    check_free(output, force)
    use_threads(threads)
    scored = {}
    for folder in corpus:
        ids, prefix = tokenize(model, read_text(folder, "test"))
        scored[folder.name] = whole_windows(ids, prefix, window, windows)
    write_csv(output, compare_quantizers(model, quantized, scored, bootstrap, seed), COLUMNS)
