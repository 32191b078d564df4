"""`lumoe moe calibrate`, `throughput`, `batching`, `residency`, `true-scale`: how fast, measured."""

from __future__ import annotations

from collections.abc import Sequence
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
    summary: Annotated[
        Path | None,
        typer.Option(help="write hit rates on calibration text, by which `lumoe moe plan` chooses a policy"),
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="profile of a machine, for modelled speeds")] = None,
    bits: Annotated[int, typer.Option(help="precision that reads are counted at: 16, or that of --quantized")] = 16,
    tokens: Annotated[int, typer.Option(min=16, help="tokens of each corpus's test split, and of calibration")] = 2048,
    synthetic_tokens: Annotated[int, typer.Option(min=0, help="tokens of each synthetic trace; 0: none")] = 1000,
    prefetch: Annotated[
        list[int] | None, typer.Option(min=1, help="experts that are guessed and read ahead; k and 2k by default")
    ] = None,
    sequence: Annotated[int, typer.Option(min=2)] = 256,
    seed: Annotated[list[int] | None, typer.Option(help="seeds of the random policy")] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Record routing on held-out text and replay residency policies on it, and on synthetic routing that drifts.

    Example: `lumoe moe residency --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --output residency.csv --summary caching.csv`
    """
    import pandas as pd
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.checkpoint.weights import Checkpoint
    from lumoe.moe.corpora.sequences import draw_sequences
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.measurement.residency import (
        COLUMNS,
        Costs,
        Held,
        Learned,
        Trial,
        compare,
        numbers_of_places,
        record_with_guesses,
        synthetic,
    )
    from lumoe.moe.offload.file_experts import expert_bytes
    from lumoe.moe.planning import caching_choice
    from lumoe.moe.planning.cost import CostModel
    from lumoe.moe.planning.hardware import read_hardware
    from lumoe.moe.planning.scaling import scaled
    from lumoe.moe.quantization.folder import QuantizedExperts, read_frequencies
    from lumoe.progress import track

    use_threads(threads)
    QuantizedExperts(quantized).check_fits(Checkpoint(model))
    sizes = expert_bytes(model, quantized, [bits])
    engine = Engine.load(model, dtype=torch.float32)
    shape, usage = engine.decoder.architecture, read_frequencies(quantized)
    machine = scaled(read_hardware(hardware), shape) if hardware else None
    costs = Costs(bits, sizes[bits], CostModel(machine, shape, sizes) if machine else None)
    slots, seeds = numbers_of_places(usage.shape[1]), seed or [0, 1, 2]
    ahead = prefetch or sorted({min(count * shape.num_experts_per_tok, usage.shape[1]) for count in (1, 2)} | {1})

    def recorded(name: str, folders: Sequence[Path], draw: int, split: str) -> Held:
        sequences = draw_sequences(model, folders, tokens, sequence, draw, split)
        trace, routers = record_with_guesses(engine, sequences, max(ahead))
        return Held(name, trace, {"router": routers})

    trial = Trial.run(recorded("calibration", corpus, seeds[0], "train"), usage.shape[1], slots, sequence, ahead)
    learned = Learned.learn(usage, trial)
    parts = []
    for folder in track(corpus, "corpora recorded"):
        part = recorded(folder.name, [folder], 0, "test")
        parts.append(part.guessed("transitions", learned.transitions.guess(part.trace, max(ahead))))
    groups = [parts, [Held.joined(parts, "joined")]] if len(parts) > 1 else [parts]
    tables = [compare(held, learned, slots, seeds, costs, ahead) for held in track(groups, "groups of traces replayed")]
    if synthetic_tokens:
        tables += synthetic(synthetic_tokens, seeds, costs)
    write_csv(output, pd.concat(tables), COLUMNS)
    if summary:
        write_csv(summary, trial.table(), caching_choice.COLUMNS)


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
