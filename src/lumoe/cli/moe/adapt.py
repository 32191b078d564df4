"""`lumoe moe adapt` and `lumoe moe trace`: a model under a budget that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lumoe.cli.options import CsvOption, DeviceOption, DtypeOption, JsonOption, ModelOption, ThreadsOption, use_threads
from lumoe.cli.tables import for_programs, show

app = typer.Typer(no_args_is_help=True)


@app.command()
def adapt(
    model: ModelOption,
    quantized: Annotated[Path, typer.Option(help="folder of quantised experts")],
    trace: Annotated[list[Path], typer.Option(help="budget trace (time_s, budget, preference); repeat for several")],
    corpus: Annotated[list[Path], typer.Option(help="corpus folder that prompts are taken from; repeat for several")],
    output: Annotated[Path, typer.Option(help="the record, a row each interval and each change")],
    summary: Annotated[Path | None, typer.Option(help="table of one row per trace and strategy")] = None,
    duration: Annotated[float, typer.Option(min=0.1, help="seconds of each replay; the trace is scaled to it")] = 60.0,
    interval: Annotated[float, typer.Option(min=0.01, help="seconds between two rows")] = 0.5,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 16,
    new_tokens: Annotated[int, typer.Option(min=1)] = 16,
    prompts: Annotated[int, typer.Option(min=1, help="different prompts")] = 16,
    seed: int = 0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Replay budget traces: live reconfiguration beside a static plan and a restart at each change.

    Example: `lumoe moe adapt --model data/models/mini-mixtral --quantized quantized --trace data/traces/steps.csv
    --corpus corpora/scipy --duration 10 --output adaptation.csv`
    """
    from functools import partial

    import torch

    from lumoe.files import write_csv
    from lumoe.moe.corpora.sequences import held_out_prompts
    from lumoe.moe.engine.open import EngineConfig, open_model
    from lumoe.moe.measurement.adaptation import COLUMNS, Scale, compare, summarize
    from lumoe.moe.measurement.budget_traces import read_trace

    use_threads(threads)
    traces = {path.stem: read_trace(path) for path in trace}
    texts = held_out_prompts(model, corpus, prompt_tokens, prompts, seed)
    open_anew = partial(open_model, model, quantized, EngineConfig(device, getattr(torch, dtype)))
    record = compare(open_anew, traces, texts, Scale(duration, interval, new_tokens, seed))
    table = summarize(record)
    if summary is not None:
        write_csv(summary, table)
    write_csv(output, record, COLUMNS)
    if not for_programs(table, as_json, as_csv):
        show(table, "Replays")


@app.command()
def trace(
    kind: Annotated[Literal["steps", "sawtooth", "multi-tenant"], typer.Argument(help="what happens to the budget")],
    output: Annotated[Path, typer.Option(help="the trace: time_s, budget, preference")],
    duration: Annotated[float, typer.Option(min=1, help="seconds")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="of the multi-tenant day")] = 0,
) -> None:
    """Write a budget trace; those in data/traces were written by this command with its defaults.

    Example: `lumoe moe trace sawtooth --duration 30 --output sawtooth.csv`
    """
    from lumoe.files import write_csv
    from lumoe.moe.measurement import budget_traces as traces

    if kind == "multi-tenant":
        table = traces.multi_tenant(duration, seed)
    else:
        table = traces.steps(duration) if kind == "steps" else traces.sawtooth(duration)
    write_csv(output, table, traces.COLUMNS)
