"""`lumoe moe generate`: continue a text under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import DeviceOption, DtypeOption, ModelOption, QuantizedOption, ThreadsOption, use_threads

app = typer.Typer(no_args_is_help=True)


@app.command()
def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    quantized: QuantizedOption = None,
    plan: Annotated[Path | None, typer.Option(help="plan as JSON, from `lumoe moe plan`")] = None,
    budget: Annotated[str | None, typer.Option(help="bytes of the fast tier, like 24GB or 30%")] = None,
    new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Continue a text (the likeliest token each time) and say what it cost.

    Example: `lumoe moe generate --model data/models/mini-mixtral --budget 100% --new-tokens 16 "Return the"`
    """
    import time

    import torch

    from lumoe.errors import about
    from lumoe.files import read_json
    from lumoe.moe.checkpoint.tokenize import tokenize
    from lumoe.moe.checkpoint.tokenizer import load_tokenizer
    from lumoe.moe.checkpoint.weights import read_architecture
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.planning.budget import parse_budget
    from lumoe.moe.planning.plan import Plan
    from lumoe.progress import track

    use_threads(threads)
    ids = tokenize(model, prompt)[0]
    with about(plan or ""):
        chosen = Plan.from_dict(read_json(plan)) if plan else None
    limit = parse_budget(budget, read_architecture(model).bytes_full) if budget else None
    engine = Engine.load(model, quantized, chosen, limit, dtype=getattr(torch, dtype), device=device)
    began = time.perf_counter()
    made = list(track(engine.stream(ids, new_tokens), "tokens", new_tokens))
    seconds = time.perf_counter() - began
    tokenizer = load_tokenizer(model)
    typer.echo(prompt + tokenizer.decode([int(token) for token in made]))
    counts = engine.metrics()
    typer.echo(
        f"{new_tokens / seconds:.2f} tokens/s; {counts['bytes_fast']} bytes fast; {counts['hits']} hits, "
        f"{counts['misses']} misses, {counts['bytes_moved']} bytes moved",
        err=True,
    )
