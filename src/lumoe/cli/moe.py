"""`lumoe moe`: quantise, measure this machine, time and run a model under a byte budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lumoe.cli import moe_adapt, moe_plan, moe_true_scale

app = typer.Typer(no_args_is_help=True)
app.registered_commands += moe_plan.app.registered_commands + moe_adapt.app.registered_commands
app.registered_commands += moe_true_scale.app.registered_commands

ModelOption = Annotated[Path, typer.Option(help="folder of a Mixtral checkpoint")]
CorpusOption = Annotated[list[Path], typer.Option(help="corpus folder; repeat for several")]
QuantizedOption = Annotated[list[Path] | None, typer.Option(help="folder of quantised experts; repeat for several")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="threads that torch uses; 0: its own choice")]
DeviceOption = moe_plan.DeviceOption
DtypeOption = Annotated[Literal["bfloat16", "float32"], typer.Option(help="type of the activations")]


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
    threads: ThreadsOption = 0,
) -> None:
    """Quantise all experts one by one; run again after an interruption, it goes on where it stopped.

    Example: `lumoe moe quantize --model data/models/mini-mixtral --corpus corpora/scipy --method gptq --bits 4
    --output quantized`
    """
    import logging
    from functools import partial

    from lumoe.moe.calibration import draw_sequences
    from lumoe.moe.checkpoint import Checkpoint
    from lumoe.moe.quantize import Recipe, quantize
    from lumoe.progress import quiet

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    _use_threads(threads)
    recipe = Recipe(method, bits, group_size, least_tokens)
    checkpoint = Checkpoint(model)
    ids = draw_sequences(model, corpus, tokens, sequence, seed)
    say = (lambda line: None) if quiet() else partial(typer.echo, err=True)
    table = quantize(checkpoint, ids, output, recipe, progress=say)
    rounded = table[table["method"] != method]
    typer.echo(
        f"{len(table)} experts at {bits} bits in {output}: mean output error {table['relative_error'].mean():.4f}, "
        f"{len(rounded)} rounded to nearest for want of calibration tokens"
    )


@app.command()
def calibrate(
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="the profile, JSON")],
    quantized: QuantizedOption = None,
    bits: Annotated[
        list[int] | None, typer.Option(help="precisions to time; 16 and the quantised ones by default")
    ] = None,
    name: Annotated[str, typer.Option(help="name of the profile")] = "this-machine",
    seconds: Annotated[float, typer.Option(min=0.01, help="least time spent on each number")] = 0.3,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Measure this machine's profile: experts, slow tier, and everything outside the experts.

    Example: `lumoe moe calibrate --model data/models/mini-mixtral --quantized quantized --threads 1 --output
    machine.json`
    """
    import torch

    from lumoe.files import write_json
    from lumoe.moe.checkpoint import read_architecture
    from lumoe.moe.opening import open_engine
    from lumoe.moe.plan import FULL_BITS, Plan
    from lumoe.moe.profile import measure_hardware
    from lumoe.moe.quantized import QuantizedExperts

    _use_threads(threads)
    plan = Plan.uniform(*read_architecture(model).plan_shape, resident=False)
    engine = open_engine(model, quantized, plan, dtype=getattr(torch, dtype), device=device)
    wanted = bits or [FULL_BITS, *(QuantizedExperts(folder).bits for folder in quantized or [])]
    write_json(output, measure_hardware(engine, sorted({*wanted}), name, seconds).model_dump(mode="json"))


@app.command()
def throughput(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of quantised experts")],
    hardware: Annotated[str, typer.Option(help="profile of this machine, made by `lumoe moe calibrate`")],
    corpus: CorpusOption,
    output: Annotated[Path, typer.Option(help="the table")],
    count: Annotated[list[int], typer.Option(min=0, help="numbers of quantised experts")],
    resident: Annotated[list[float], typer.Option(min=0, max=1, help="shares of resident experts")],
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 16,
    new_tokens: Annotated[int, typer.Option(min=1)] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Measure tokens/s of configurations at batch 1 and predict each from the machine's profile.

    Example: `lumoe moe throughput --model data/models/mini-mixtral --quantized quantized --hardware machine.json
    --corpus corpora/scipy --count 0 --count 32 --resident 0.5 --resident 1 --output throughput.csv`
    """
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.calibration import held_out_prompts
    from lumoe.moe.hardware import read_hardware
    from lumoe.moe.opening import open_engine
    from lumoe.moe.plan import Plan
    from lumoe.moe.quantize import read_frequencies
    from lumoe.moe.quantized import QuantizedExperts
    from lumoe.moe.throughput import COLUMNS, configurations, measure, that_fit

    _use_threads(threads)
    profile = read_hardware(hardware)
    prompts = held_out_prompts(model, corpus, prompt_tokens, repeats + 1, seed)
    experts = QuantizedExperts(quantized)
    plan = Plan.uniform(experts.shape["num_hidden_layers"], experts.shape["num_local_experts"], resident=False)
    engine = open_engine(model, quantized, plan, dtype=getattr(torch, dtype), device=device)
    plans = configurations(plan.shape, count, resident, engine.memory.expert, experts.bits, seed)
    held = that_fit(engine, plans)
    if len(held) < len(plans):
        left_out = f"{len(plans) - len(held)} of {len(plans)} configurations do not fit the device and are left out"
        typer.echo(f"warning: {left_out}", err=True)
    table = measure(engine, held, prompts, new_tokens, repeats, profile, read_frequencies(quantized))
    write_csv(output, table, COLUMNS)


@app.command()
def batching(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of quantised experts")],
    corpus: CorpusOption,
    output: Annotated[Path, typer.Option(help="the table")],
    batch: Annotated[list[int], typer.Option(min=1, help="sequences that decode together")],
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 16,
    new_tokens: Annotated[int, typer.Option(min=2)] = 16,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
) -> None:
    """Measure tokens/s against the number of sequences, all experts resident, at 16 bits and quantised.

    Example: `lumoe moe batching --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy --batch
    1 --batch 8 --output batching.csv`
    """
    import pandas as pd

    from lumoe.errors import UserError
    from lumoe.files import write_csv
    from lumoe.moe.calibration import held_out_prompts
    from lumoe.moe.opening import open_engine
    from lumoe.moe.plan import FULL_BITS, Plan
    from lumoe.moe.quantized import QuantizedExperts
    from lumoe.moe.throughput import BATCH_COLUMNS, measure_batches

    _use_threads(threads)
    prompts = held_out_prompts(model, corpus, prompt_tokens, max(batch), seed)
    engine = open_engine(model, quantized, device=device)
    tables = []
    for bits in (FULL_BITS, QuantizedExperts(quantized).bits):
        engine.reconfigure(Plan.uniform(*engine.plan.shape, bits))
        if not engine.plan.resident.all():
            typer.echo(f"warning: not all experts at {bits} bits fit the device; left out", err=True)
            continue
        tables.append(measure_batches(engine, prompts, batch, new_tokens, repeats))
    if not tables:
        raise UserError(f"{device}: not even all experts at {QuantizedExperts(quantized).bits} bits fit this device")
    write_csv(output, pd.concat(tables), BATCH_COLUMNS)


@app.command()
def residency(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of quantised experts: calibration routing frequencies")],
    corpus: CorpusOption,
    output: Annotated[Path, typer.Option(help="the table")],
    tokens: Annotated[int, typer.Option(min=16, help="tokens of each corpus's test split")] = 4096,
    sequence: Annotated[int, typer.Option(min=2)] = 256,
    seed: Annotated[list[int] | None, typer.Option(help="seeds of the random policy")] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Record routing on held-out text and replay residency policies on it.

    Example: `lumoe moe residency --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --output residency.csv`
    """
    import pandas as pd
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.calibration import draw_sequences
    from lumoe.moe.engine import Engine
    from lumoe.moe.quantize import read_frequencies
    from lumoe.moe.residency import COLUMNS, compare, record_trace

    _use_threads(threads)
    engine = Engine.load(model, dtype=torch.float32)
    usage = read_frequencies(quantized)
    slots = range(usage.shape[1] + 1)
    tables = []
    for folder in corpus:
        trace = record_trace(engine, draw_sequences(model, [folder], tokens, sequence, 0, "test"))
        tables.append(compare(trace, usage, slots, seed or [0, 1, 2], folder.name))
    write_csv(output, pd.concat(tables), COLUMNS)


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
) -> None:
    """Compare quantisers: perplexity, bytes and seconds with all experts quantised.

    Example: `lumoe moe quantizers --model data/models/mini-mixtral --quantized quantized-gptq --quantized
    quantized-rtn --corpus corpora/scipy --output quantizers.csv`
    """
    from lumoe.files import write_csv
    from lumoe.moe.corpora import read_text
    from lumoe.moe.perplexity import tokenize, whole_windows
    from lumoe.moe.quantizers import COLUMNS, compare_quantizers

    _use_threads(threads)
    scored = {}
    for folder in corpus:
        ids, prefix = tokenize(model, read_text(folder, "test"))
        scored[folder.name] = whole_windows(ids, prefix, window, windows)
    write_csv(output, compare_quantizers(model, quantized, scored, bootstrap, seed), COLUMNS)


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
    from lumoe.moe.budget import parse_budget
    from lumoe.moe.checkpoint import read_architecture
    from lumoe.moe.opening import open_engine
    from lumoe.moe.perplexity import tokenize
    from lumoe.moe.plan import Plan
    from lumoe.moe.tokenizer import load_tokenizer
    from lumoe.progress import track

    _use_threads(threads)
    ids = tokenize(model, prompt)[0]
    with about(plan or ""):
        chosen = Plan.from_dict(read_json(plan)) if plan else None
    limit = parse_budget(budget, read_architecture(model).bytes_full) if budget else None
    engine = open_engine(model, quantized, chosen, limit, getattr(torch, dtype), device=device)
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


def _use_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
