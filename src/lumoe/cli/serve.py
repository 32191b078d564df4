"""`lumoe serve`: an OpenAI-compatible server for a Mixture-of-Experts model under a byte budget."""

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
    ScopeOption,
    ThreadsOption,
    caching_of,
)

app = typer.Typer()


@app.callback(invoke_without_command=True)
def serve(
    model: ModelOption,
    budget: Annotated[
        str | None,
        typer.Option(
            help="of weights, swap buffers and keys and values together: 24GB, 22.5GiB, 30% of the 16-bit model, or "
            "cgroup to follow this process's memory limit; what memory holds by default"
        ),
    ] = None,
    quantized: Annotated[
        Path | None, typer.Option(help="folder of quantised experts; without it, experts are rounded to 8 bits")
    ] = None,
    prefer: Annotated[
        Literal["throughput", "quality"], typer.Option(help="what to plan for when a request does not say")
    ] = "throughput",
    name: Annotated[str | None, typer.Option(help="what clients call the model; the folder's name by default")] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LUMOE_API_KEY", help="key that /v1 asks for", show_envvar=True)
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="sequences decoded together")] = 16,
    context: Annotated[
        int | None, typer.Option(min=2, help="tokens of prompt and answer; 2048 or what the model has by default")
    ] = None,
    kv_bits: Annotated[
        Literal["16", "8"], typer.Option(help="of keys and values; 8 takes half their memory, at some loss")
    ] = "16",
    share_prefixes: Annotated[
        bool, typer.Option(help="begin with the keys and values of earlier sequences that began alike")
    ] = True,
    queue: Annotated[int, typer.Option(min=0, help="sequences that may wait; more are answered 429")] = 128,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="prompt tokens fed between two decode steps")] = 512,
    policy: PolicyOption = "auto",
    cache_scope: ScopeOption = None,
    half_life: HalfLifeOption = None,
    prefetch: PrefetchOption = 0,
    drain: Annotated[int, typer.Option(min=0, help="seconds that running requests get after SIGTERM")] = 60,
    arrival: Annotated[
        float, typer.Option(min=0.1, help="seconds within which a request must have arrived; then 408")
    ] = 60.0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    measurements: Annotated[
        Path | None, typer.Option(help="folder of machine.json, perplexity.csv, sensitivity.csv; results/moe/NAME")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the random choice of experts, where sensitivities are unknown")] = 0,
    state: Annotated[
        Path | None, typer.Option(help="file that keeps the budget last set over HTTP; a restart goes on with it")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="site whose web pages may ask, as https://chat.example; may be repeated")
    ] = None,
) -> None:
    """Serve a model under a byte budget that can change while it runs.

    Example: `lumoe serve --model data/models/mini-mixtral --budget 60% --port 8000`
    """
    import logging
    import os

    from lumoe.moe.planning.inputs import usual_caching

    caching = caching_of(policy, cache_scope, half_life, prefetch, lambda: usual_caching(str(model), measurements))
    # Both libraries below torch keep what they prepared for each number of tokens, a thousand of each by default: under
    # load that grows by 450 MB, which no budget counts. docs/serving.md has what fewer cost.
    for kept in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(kept, "64")
    import torch

    from lumoe.moe.architectures.read import read_architecture
    from lumoe.moe.serve.run import Setup
    from lumoe.moe.serve.run import serve as run
    from lumoe.moe.serve.scheduler import Limits

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    threads = threads or torch.get_num_threads()
    # OpenMP gives every thread that computes in parallel a team of its own. With more of them than processors, teams
    # sleep between two operators and each operator pays for waking its own: only the engine's thread gets one.
    torch.set_num_threads(1)
    longest = min(2048, read_architecture(model).max_position_embeddings)
    limits = Limits(slots, context or longest, queue, prefill_tokens, threads, share_prefixes)
    setup = Setup(
        model, quantized, budget, prefer, name, api_key, dtype, caching, seed, state, device, measurements,
        tuple(cors_origin or ()), int(kv_bits),
    )  # fmt: skip
    run(setup, limits, host, port, drain, arrival)
