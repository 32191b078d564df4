"""`lumoe moe generate`: continue a text under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lumoe.cli.options import (
    DeviceOption,
    DtypeOption,
    HalfLifeOption,
    ModelOption,
    PolicyOption,
    PrefetchOption,
    QuantizedOption,
    ScopeOption,
    ThreadsOption,
    caching_of,
    use_threads,
)

app = typer.Typer(no_args_is_help=True)


@app.command()
def generate(
    model: ModelOption,
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    quantized: QuantizedOption = None,
    plan: Annotated[Path | None, typer.Option(help="plan as JSON, from `lumoe moe plan`")] = None,
    budget: Annotated[
        str | None, typer.Option(help="bytes of the fast tier, like 24GB or 30%; without --plan it is planned for")
    ] = None,
    prefer: Annotated[Literal["throughput", "quality"], typer.Option(help="what to plan for")] = "throughput",
    measurements: Annotated[
        Path | None, typer.Option(help="folder of machine.json, perplexity.csv, sensitivity.csv; results/moe/NAME")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens at most; the model may end earlier")] = 64,
    policy: PolicyOption = "auto",
    cache_scope: ScopeOption = None,
    half_life: HalfLifeOption = None,
    prefetch: PrefetchOption = 0,
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
    from lumoe.moe.architectures.read import read_architecture
    from lumoe.moe.checkpoint.chat_template import chat_tokenizer
    from lumoe.moe.checkpoint.end_tokens import end_tokens
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.engine.open import EngineConfig, open_model
    from lumoe.moe.engine.planned import planner_for
    from lumoe.moe.planning.budget import parse_budget
    from lumoe.moe.planning.inputs import usual_caching
    from lumoe.moe.planning.plan import Plan
    from lumoe.moe.planning.planner import Wish
    from lumoe.moe.serve.continuation import continuation, prompt_ids
    from lumoe.moe.serve.prompts import Prompts
    from lumoe.progress import track

    use_threads(threads)
    caching = caching_of(policy, cache_scope, half_life, prefetch, lambda: usual_caching(str(model), measurements))
    architecture, tokenizer = read_architecture(model), chat_tokenizer(model)
    longest = architecture.max_position_embeddings
    prompts = Prompts(tokenizer, architecture.vocab_size, longest, end_tokens(model, tokenizer))
    ids = prompt_ids(prompts, prompt)
    architecture.check_context(len(ids) + new_tokens, model)
    with about(plan or ""):
        chosen = Plan.from_dict(read_json(plan)) if plan else None
    opened = open_model(model, quantized, EngineConfig(device, getattr(torch, dtype), caching))
    limit = parse_budget(budget, opened.whole_bytes) if budget else None
    if limit is not None and chosen is None:
        planner = planner_for(opened, model, quantized[0] if quantized else None, measurements)
        chosen = planner.propose(Wish(limit, prefer)).plan
    engine = Engine(opened, chosen, limit)
    typer.echo(str(opened.opening), err=True)
    began = time.perf_counter()
    stream = track(engine.stream(ids, new_tokens), "tokens", new_tokens)
    made, text = continuation(prompts, ids, map(int, stream))
    seconds = time.perf_counter() - began
    typer.echo(prompt + text)
    counts = engine.metrics()
    typer.echo(
        f"{made / seconds:.2f} tokens/s; {counts['bytes_fast']} bytes fast; {counts['hits']} hits, "
        f"{counts['misses']} misses, {counts['bytes_moved']} bytes moved"
        + (f"; {counts['guessed_right']} of {counts['guessed']} guesses right" if prefetch else ""),
        err=True,
    )
