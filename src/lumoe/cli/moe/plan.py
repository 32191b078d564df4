"""`lumoe moe plan`, `enumerate`, `anchors`: precision and place of every expert, and what that will give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import NewOption, PromptOption

app = typer.Typer(no_args_is_help=True)

ShapeOption = Annotated[str, typer.Option(help="a model folder, its config.json, or the name of a shipped shape")]
HardwareOption = Annotated[str, typer.Option(help="a profile file (.yaml, .json) or the name of a shipped profile")]
BitsOption = Annotated[int, typer.Option(help="bits per weight of a quantised expert")]
GroupOption = Annotated[int, typer.Option(help="weights that share a scale")]
BufferOption = Annotated[int, typer.Option(min=0, help="swap buffer, in 16-bit experts")]


AnyModelOption = Annotated[
    str,
    typer.Option(help="a model folder, a GGUF file, a config.json, a shipped shape, or hub:ORG/NAME[@REVISION][:FILE]"),
]


@app.command()
def plan(
    model: AnyModelOption,
    budget: Annotated[str, typer.Option(help="bytes of the fast tier: 24GB, 22.5GiB, or a % of the 16-bit model")],
    prefer: Annotated[str, typer.Option(help="throughput or quality")],
    min_tokens_per_s: Annotated[float | None, typer.Option(min=0, help="new tokens/s that must be reached")] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(min=0, help="relative increase that must not be exceeded, such as 0.02")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="profile; machine.json of --measurements by default")] = None,
    quantized: Annotated[Path | None, typer.Option(help="folder of quantised experts: true sizes and use")] = None,
    measurements: Annotated[
        Path | None, typer.Option(help="folder of machine.json, perplexity.csv, sensitivity.csv; results/moe/NAME")
    ] = None,
    perplexity: Annotated[Path | None, typer.Option(help="perplexities instead of those of --measurements")] = None,
    residency: Annotated[
        Path | None, typer.Option(help="hit rates that `lumoe moe residency --summary` wrote, to choose a cache policy")
    ] = None,
    bits: BitsOption = 4,
    group_size: GroupOption = 64,
    buffer_experts: Annotated[int, typer.Option(min=0, help="swap buffers, as large as the plan's missed experts")] = 2,
    context: Annotated[int, typer.Option(min=0, help="tokens whose keys and values the plan leaves room for")] = 0,
    prompt_tokens: PromptOption = 16,
    new_tokens: NewOption = 16,
    seed: Annotated[int, typer.Option(help="of the random choice of experts, where sensitivities are unknown")] = 0,
    output: Annotated[Path | None, typer.Option(help="write the plan as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the plan and its prediction as JSON, for programs")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one row per expert as CSV, for programs")] = False,
) -> None:
    """Choose precision and place of every expert for a budget, and say what that will give.

    Weights need not be there: sizes come from the headers of files, here or on the hub, or from config.json alone.

    Example: `lumoe moe plan --model mixtral-8x7b --hardware a100-80gb --budget 30GB --prefer quality`
    """
    import json
    from dataclasses import replace

    from lumoe.cli.tables import for_programs, one_format
    from lumoe.errors import UserError
    from lumoe.files import write_json
    from lumoe.moe.checkpoint.outline import read_outline
    from lumoe.moe.offload.file_experts import expert_bytes
    from lumoe.moe.planning.budget import parse_budget
    from lumoe.moe.planning.cost import Workload
    from lumoe.moe.planning.inputs import HUB, Known, build_planner, describe
    from lumoe.moe.planning.plan import FULL_BITS, parse_preference
    from lumoe.moe.planning.planner import Wish
    from lumoe.moe.quantization.folder import read_frequencies

    one_format(as_json, as_csv)
    if quantized and model.startswith(HUB):
        raise UserError(f"--quantized: experts of {model} need the model's files; fetch it and give its folder")
    outline = read_outline(model)
    shape, memory, frequencies = outline.architecture, outline.memory(bits, group_size), None
    whole = memory.non_expert + shape.experts * memory.expert[FULL_BITS]
    amount, preference = parse_budget(budget, whole), parse_preference(prefer)
    wish = Wish(amount, preference, min_tokens_per_s, max_perplexity_increase, shape.kv_bytes(context))
    known = Known.find(model, measurements, hardware, quantized, perplexity, residency)
    if quantized:
        memory = replace(memory, expert=expert_bytes(model, quantized, (bits, FULL_BITS)))
        frequencies = read_frequencies(quantized, shape.plan_shape)
    memory = replace(memory, swap_buffers=buffer_experts)
    planner = build_planner(shape, memory, known, Workload(prompt_tokens, new_tokens), bits, frequencies, seed)
    proposal = planner.propose(wish)
    result = {
        "model": model,
        "hardware": planner.costs.hardware.name if planner.costs else None,
        "predicted_from_another_model": bool(planner.costs and planner.costs.scaled_from),
        "budget_bytes": wish.budget_bytes,
        **outline.parts.to_dict(),
        "experts_computed_from": memory.stored or None,
    } | proposal.to_dict()
    if output:
        write_json(output, result)
    if as_csv:
        for_programs(proposal.table(), as_json, as_csv)
    else:
        typer.echo(json.dumps(result) if as_json else describe(model, planner, wish, proposal, outline.parts))


@app.command("enumerate")
def enumerate_command(
    model: ShapeOption,
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
    """Enumerate all (quantised x resident) configurations and their Pareto frontier.

    Example: `lumoe moe enumerate --model mixtral-8x7b --hardware a100-80gb --budget 30GB --budget 50%
    --configurations all.csv --pareto pareto.csv --sweep sweep.csv`
    """
    from lumoe.files import read_csv, write_csv
    from lumoe.moe.architectures.read import read_shape
    from lumoe.moe.planning import frontier
    from lumoe.moe.planning.budget import parse_budget
    from lumoe.moe.planning.cost import CostModel, Workload
    from lumoe.moe.planning.hardware import read_hardware
    from lumoe.moe.planning.perplexities import PERPLEXITY_COLUMNS

    shape = read_shape(model)
    memory = shape.memory([bits], group_size, buffer_experts)
    costs = CostModel(read_hardware(hardware), shape, memory.expert, Workload(prompt_tokens, new_tokens))
    budgets = [parse_budget(text, shape.bytes_full) for text in budget]
    counts = sorted({round(value * shape.experts) for value in (share or [0.0, 1.0])})
    table = frontier.enumerate_configurations(costs, memory, bits)
    measured = read_csv(perplexity, PERPLEXITY_COLUMNS) if perplexity else None
    table = frontier.with_perplexity(table, measured, bits)
    best = frontier.pareto(table, budgets)
    planned = frontier.sweep(costs, memory, budgets, counts, bits)
    write_csv(configurations, table, frontier.COLUMNS)
    write_csv(pareto, best, [*frontier.COLUMNS, "budget_bytes"])
    write_csv(sweep, planned)


@app.command()
def anchors(
    model: ShapeOption,
    hardware: HardwareOption,
    published: Annotated[Path, typer.Option(help="published speeds with budget and preference")],
    output: Annotated[Path, typer.Option(help="table of predictions beside the published speeds")],
    bits: BitsOption = 4,
    group_size: GroupOption = 64,
    buffer_experts: BufferOption = 1,
    prompt_tokens: PromptOption = 16,
    new_tokens: NewOption = 16,
) -> None:
    """Hold the cost model against published speeds.

    Example: `lumoe moe anchors --model mixtral-8x7b --hardware a100-80gb --published data/moe-anchors.csv --output
    anchors.csv`
    """
    from lumoe.files import read_csv, write_csv
    from lumoe.moe.architectures.read import read_shape
    from lumoe.moe.planning import frontier
    from lumoe.moe.planning.cost import CostModel, Workload
    from lumoe.moe.planning.hardware import read_hardware

    shape = read_shape(model)
    memory = shape.memory([bits], group_size, buffer_experts)
    costs = CostModel(read_hardware(hardware), shape, memory.expert, Workload(prompt_tokens, new_tokens))
    table = frontier.predict_anchors(read_csv(published, frontier.ANCHOR_COLUMNS), costs, memory, bits)
    write_csv(output, table)
