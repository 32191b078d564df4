"""`lumoe moe perplexity`, `sensitivity`, `perplexity-table`, `cross-check`: how good, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import DeviceOption, ExactThreadsOption, ForceOption, ModelOption, check_free

app = typer.Typer(no_args_is_help=True)

WindowOption = Annotated[int, typer.Option(min=8, help="tokens per window")]
ActivationsOption = Annotated[str, typer.Option(help="float32, or bfloat16 for the kernels that serve")]


@app.command()
def perplexity(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of its quantised experts")],
    corpus: Annotated[Path, typer.Option(help="corpus folder; its test split is scored")],
    output: Annotated[Path, typer.Option(help="table of each window's negative log-likelihood")],
    count: Annotated[list[int], typer.Option(min=0, help="numbers of quantised experts")],
    policy: Annotated[str, typer.Option(help="which experts: random, sensitivity or mixed (precisions)")] = "random",
    seed: Annotated[int, typer.Option(help="of the random order in which experts are quantised")] = 0,
    sensitivity: Annotated[Path | None, typer.Option(help="table of `lumoe moe sensitivity`")] = None,
    window: WindowOption = 256,
    windows: Annotated[int, typer.Option(min=1, help="windows at most")] = 64,
    activations: ActivationsOption = "float32",
    device: DeviceOption = "cpu",
    threads: ExactThreadsOption = 1,
    force: ForceOption = False,
) -> None:
    """Score a corpus with more and more experts quantised.

    Example: `lumoe moe perplexity --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --count 16 --count 32 --output windows.csv`
    """
    import torch

    from lumoe.files import read_csv, write_csv
    from lumoe.moe.architectures.read import read_shape
    from lumoe.moe.checkpoint.tokenize import tokenize
    from lumoe.moe.corpora.corpus import read_text
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.evaluation import quality
    from lumoe.moe.evaluation.perplexity import whole_windows
    from lumoe.moe.planning.policy import plans_of
    from lumoe.moe.planning.sensitivity import COLUMNS
    from lumoe.moe.quantization.folder import QuantizedExperts

    check_free(output, force)
    torch.set_num_threads(threads)
    shape, experts = read_shape(model), QuantizedExperts(quantized)
    tokens, prefix = tokenize(model, read_text(corpus, "test"))
    pieces = whole_windows(tokens, prefix, window, windows)
    costs = read_csv(sensitivity, COLUMNS) if sensitivity else None
    memory = shape.memory([4, 8, experts.bits], experts.group_size)
    counts = sorted({0, *count})
    plans = plans_of(policy, shape.plan_shape, counts, experts.bits, memory.expert, seed, costs)
    engine = Engine.load(model, quantized, dtype=getattr(torch, activations), device=device)
    labels = {"corpus": corpus.name, "method": experts.method, "bits": experts.bits, "policy": policy, "seed": seed}
    by_count = dict(zip(counts, plans, strict=True))
    table = quality.score_table(engine, pieces, by_count, memory.expert, **labels, activations=activations)
    write_csv(output, table, quality.WINDOW_COLUMNS)


@app.command()
def sensitivity(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of its quantised experts")],
    corpus: Annotated[list[Path], typer.Option(help="corpus folders; their validation splits are used")],
    output: Annotated[Path, typer.Option(help="table of every expert's divergence")],
    bits: Annotated[list[int] | None, typer.Option(help="precisions; those of the folder and 8 by default")] = None,
    window: WindowOption = 256,
    windows: Annotated[int, typer.Option(min=1, help="windows per corpus")] = 4,
    activations: ActivationsOption = "float32",
    device: DeviceOption = "cpu",
    threads: ExactThreadsOption = 1,
    force: ForceOption = False,
) -> None:
    """Measure what quantising each expert alone does to the model's predictions.

    Example: `lumoe moe sensitivity --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --output sensitivity.csv`
    """
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.architectures.read import read_shape
    from lumoe.moe.checkpoint.tokenize import tokenize
    from lumoe.moe.corpora.corpus import read_text
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.evaluation.divergence import measure_costs
    from lumoe.moe.evaluation.perplexity import whole_windows
    from lumoe.moe.planning.sensitivity import COLUMNS
    from lumoe.moe.quantization.folder import QuantizedExperts

    check_free(output, force)
    torch.set_num_threads(threads)
    pieces = []
    for folder in corpus:
        tokens, prefix = tokenize(model, read_text(folder, "validation"))
        pieces += whole_windows(tokens, prefix, window, windows)
    shape = read_shape(model)
    # What `measure_costs` holds where the model runs: log-probabilities of every token of the windows.
    held = 4 * shape.vocab_size * sum(len(piece.inputs) for piece in pieces)
    engine = Engine.load(model, quantized, dtype=getattr(torch, activations), device=device, beside_bytes=held)
    # A GPU has no kernel for 8 bits.
    precisions = bits or sorted({QuantizedExperts(quantized).bits, 8} & {*engine.store.source.precisions})
    write_csv(output, measure_costs(engine, pieces, shape.plan_shape, precisions), COLUMNS)


@app.command("perplexity-table")
def perplexity_table(
    windows: Annotated[list[Path], typer.Argument(help="tables of `lumoe moe perplexity`")],
    output: Annotated[Path, typer.Option(help="table of perplexities and intervals")],
    bootstrap: Annotated[int, typer.Option(min=100, help="resamples")] = 2000,
    seed: Annotated[int, typer.Option(help="of the resampling")] = 0,
    comparison: Annotated[Path | None, typer.Option(help="table of policies held against random choice")] = None,
) -> None:
    """Join scored windows into perplexities with paired bootstrap intervals.

    Example: `lumoe moe perplexity-table windows.csv more-windows.csv --output perplexity.csv`
    """
    import pandas as pd

    from lumoe.files import read_csv, write_csv
    from lumoe.moe.evaluation import quality

    scored = pd.concat([read_csv(path, quality.WINDOW_COLUMNS) for path in windows], ignore_index=True)
    write_csv(output, quality.summarise(scored, bootstrap, seed), quality.COLUMNS)
    if comparison:
        write_csv(comparison, quality.compare_policies(scored, bootstrap, seed))


@app.command("cross-check")
def cross_check(
    model: ModelOption,
    corpus: Annotated[list[Path], typer.Option(help="corpus folders; documents of their test splits are scored")],
    output: Annotated[Path, typer.Option(help="table of both scorers' negative log-likelihoods")],
    documents: Annotated[int, typer.Option(min=1, help="documents per corpus")] = 16,
    window: WindowOption = 256,
    threads: ExactThreadsOption = 1,
    force: ForceOption = False,
) -> None:
    """Score the same documents at 16 bits with the engine and with lm-eval.

    Example: `lumoe moe cross-check --model data/models/mini-mixtral --corpus corpora/scipy --output lm_eval.csv`
    """
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.evaluation import lm_eval

    check_free(output, force)
    torch.set_num_threads(threads)
    write_csv(output, lm_eval.per_corpus(lm_eval.cross_check(model, corpus, documents, window)))
