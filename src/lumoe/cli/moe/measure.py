"""`lumoe moe calibrate`, `throughput`, `batching`, `residency`, `true-scale`: how fast, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import (
    CorpusOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizedOption,
    ThreadsOption,
    use_threads,
)

app = typer.Typer(no_args_is_help=True)


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
    from lumoe.moe.architectures.read import read_architecture
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.measurement.profile import measure_hardware
    from lumoe.moe.planning.plan import FULL_BITS, Plan
    from lumoe.moe.quantization.folder import QuantizedExperts

    use_threads(threads)
    plan = Plan.uniform(*read_architecture(model).plan_shape, resident=False)
    engine = Engine.load(model, quantized, plan, dtype=getattr(torch, dtype), device=device)
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
    from lumoe.moe.corpora.sequences import held_out_prompts
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.measurement.throughput import COLUMNS, configurations, measure, that_fit
    from lumoe.moe.planning.hardware import read_hardware
    from lumoe.moe.planning.plan import Plan
    from lumoe.moe.quantization.folder import QuantizedExperts, read_frequencies

    use_threads(threads)
    profile = read_hardware(hardware)
    prompts = held_out_prompts(model, corpus, prompt_tokens, repeats + 1, seed)
    experts = QuantizedExperts(quantized)
    plan = Plan.uniform(experts.shape["num_hidden_layers"], experts.shape["num_local_experts"], resident=False)
    engine = Engine.load(model, quantized, plan, dtype=getattr(torch, dtype), device=device)
    plans = configurations(plan.shape, count, resident, engine.memory.expert, experts.bits, seed)
    held = that_fit(engine, plans)
    if len(held) < len(plans):
        left_out = f"{len(plans) - len(held)} of {len(plans)} configurations do not fit the device and are left out"
        _warn(left_out)
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
    from lumoe.files import write_csv
    from lumoe.moe.corpora.sequences import held_out_prompts
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.measurement.throughput import BATCH_COLUMNS, measure_precisions
    from lumoe.moe.planning.plan import FULL_BITS
    from lumoe.moe.quantization.folder import QuantizedExperts

    use_threads(threads)
    prompts = held_out_prompts(model, corpus, prompt_tokens, max(batch), seed)
    engine = Engine.load(model, quantized, device=device)
    precisions = (FULL_BITS, QuantizedExperts(quantized).bits)
    table = measure_precisions(engine, precisions, prompts, batch, new_tokens, repeats, _warn)
    write_csv(output, table, BATCH_COLUMNS)


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
    from lumoe.moe.checkpoint.weights import Checkpoint
    from lumoe.moe.corpora.sequences import draw_sequences
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.measurement.residency import COLUMNS, compare, record_trace
    from lumoe.moe.quantization.folder import QuantizedExperts, read_frequencies

    use_threads(threads)
    QuantizedExperts(quantized).check_fits(Checkpoint(model))
    engine = Engine.load(model, dtype=torch.float32)
    usage = read_frequencies(quantized)
    slots = range(usage.shape[1] + 1)
    tables = []
    for folder in corpus:
        trace = record_trace(engine, draw_sequences(model, [folder], tokens, sequence, 0, "test"))
        tables.append(compare(trace, usage, slots, seed or [0, 1, 2], folder.name))
    write_csv(output, pd.concat(tables), COLUMNS)


@app.command()
def true_scale(
    folder: Annotated[Path, typer.Option(help="folder with true_scale.csv, if it has been measured")],
    output: Annotated[Path, typer.Option(help="the summary; without rows where nothing has been measured")],
) -> None:
    """Summarise a sweep at true scale: range, ratio, gain over the paper's scheme, error of the cost model.

    Example: `lumoe moe true-scale --folder data/measurements --output true-scale.csv`
    """
    import pandas as pd

    from lumoe.files import write_csv
    from lumoe.moe.measurement.true_scale import SUMMARY, describe, read_measurements, summarize

    path = folder / "true_scale.csv"
    if not path.is_file():
        write_csv(output, pd.DataFrame(columns=list(SUMMARY)), SUMMARY)
        typer.echo(f"{path}: not measured; docs/howto/true-scale.md says how to")
        return
    summary = summarize(read_measurements(path))
    write_csv(output, summary, SUMMARY)
    typer.echo(describe(summary))


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)
