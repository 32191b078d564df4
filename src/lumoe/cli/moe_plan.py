"""`lumoe moe`: plan precision and placement, enumerate configurations, measure quality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

ModelOption = Annotated[str, typer.Option(help="a model folder, its config.json, or the name of a shipped shape")]
HardwareOption = Annotated[str, typer.Option(help="a profile file (.yaml, .json) or the name of a shipped profile")]
BitsOption = Annotated[int, typer.Option(help="bits per weight of a quantised expert")]
GroupOption = Annotated[int, typer.Option(help="weights that share a scale")]
BufferOption = Annotated[int, typer.Option(min=0, help="swap buffer, in 16-bit experts")]
PromptOption = Annotated[int, typer.Option(help="tokens in")]
NewOption = Annotated[int, typer.Option(help="tokens out")]


@app.command("enumerate")
def enumerate_command(
    model: ModelOption,
    hardware: HardwareOption,
    configurations: Annotated[Path, typer.Option(help="table of all configurations")],
    pareto: Annotated[Path, typer.Option(help="table of the frontier within each budget")],
    sweep: Annotated[Path, typer.Option(help="table of what either preference gives at each budget")],
    budget: Annotated[list[str], typer.Option(help="fast-tier bytes: 27.68GB, 20GiB, or a % of the 16-bit model")],
    share: Annotated[list[float] | None, typer.Option(min=0, max=1, help="shares of quantised experts")] = None,
    perplexity: Annotated[Path | None, typer.Option(help="measured perplexities of this model, if any")] = None,
    bits: BitsOption = 4,
    group_size: GroupOption = 64,
    buffer_experts: BufferOption = 1,
    prompt_tokens: PromptOption = 16,
    new_tokens: NewOption = 16,
) -> None:
    """Enumerate all (quantised x resident) configurations and their Pareto frontier."""
    from lumoe.files import read_csv, write_csv
    from lumoe.moe import frontier
    from lumoe.moe.budget import parse_budget
    from lumoe.moe.cost import Workload
    from lumoe.moe.hardware import read_hardware
    from lumoe.moe.shape import read_shape

    shape, profile, workload = read_shape(model), read_hardware(hardware), Workload(prompt_tokens, new_tokens)
    memory = shape.memory([bits], group_size, buffer_experts)
    budgets = [parse_budget(text, shape.bytes_full) for text in budget]
    counts = sorted({round(value * shape.experts) for value in (share or [0.0, 1.0])})
    table = frontier.enumerate_configurations(shape, memory, profile, workload, bits)
    measured = read_csv(perplexity, frontier.PERPLEXITY_COLUMNS) if perplexity else None
    table = frontier.with_perplexity(table, measured, bits)
    best = frontier.pareto(table, budgets)
    planned = frontier.sweep(shape, memory, profile, workload, budgets, counts, bits)
    write_csv(configurations, table, frontier.COLUMNS)
    write_csv(pareto, best, [*frontier.COLUMNS, "budget_bytes"])
    write_csv(sweep, planned)


@app.command()
def anchors(
    model: ModelOption,
    hardware: HardwareOption,
    published: Annotated[Path, typer.Option(help="published speeds with budget and preference")],
    output: Annotated[Path, typer.Option(help="table of predictions beside the published speeds")],
    bits: BitsOption = 4,
    group_size: GroupOption = 64,
    buffer_experts: BufferOption = 1,
    prompt_tokens: PromptOption = 16,
    new_tokens: NewOption = 16,
) -> None:
    """Hold the cost model against published speeds."""
    from lumoe.files import read_csv, write_csv
    from lumoe.moe import frontier
    from lumoe.moe.cost import Workload
    from lumoe.moe.hardware import read_hardware
    from lumoe.moe.shape import read_shape

    shape, profile = read_shape(model), read_hardware(hardware)
    table = frontier.predict_anchors(
        read_csv(published, frontier.ANCHOR_COLUMNS),
        shape,
        shape.memory([bits], group_size, buffer_experts),
        profile,
        Workload(prompt_tokens, new_tokens),
        bits,
    )
    write_csv(output, table)
