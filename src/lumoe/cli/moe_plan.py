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
WindowOption = Annotated[int, typer.Option(min=8, help="tokens per window")]
ActivationsOption = Annotated[str, typer.Option(help="float32, or bfloat16 for the kernels that serve")]
DeviceOption = Annotated[str, typer.Option(help="where the model runs: cpu, cuda or cuda:N")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="threads; the last digits depend on their number")]
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
    """Enumerate all (quantised x resident) configurations and their Pareto frontier.

    Example: `lumoe moe enumerate --model mixtral-8x7b --hardware a100-80gb --budget 30GB --budget 50%
    --configurations all.csv --pareto pareto.csv --sweep sweep.csv`
    """
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
    """Hold the cost model against published speeds.

    Example: `lumoe moe anchors --model mixtral-8x7b --hardware a100-80gb --published data/moe-anchors.csv --output
    anchors.csv`
    """
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


@app.command()
def perplexity(
    model: Annotated[Path, typer.Option(help="model folder, tokenizer included")],
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
    threads: ThreadsOption = 1,
) -> None:
    """Score a corpus with more and more experts quantised.

    Example: `lumoe moe perplexity --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --count 16 --count 32 --output windows.csv`
    """
    import pandas as pd
    import torch

    from lumoe.files import read_csv, write_csv
    from lumoe.moe import quality
    from lumoe.moe.corpora import read_text
    from lumoe.moe.opening import open_engine
    from lumoe.moe.perplexity import tokenize, whole_windows
    from lumoe.moe.policy import plans_of
    from lumoe.moe.quantized import QuantizedExperts
    from lumoe.moe.sensitivity import COLUMNS
    from lumoe.moe.shape import read_shape

    torch.set_num_threads(threads)
    shape, experts = read_shape(model), QuantizedExperts(quantized)
    tokens, prefix = tokenize(model, read_text(corpus, "test"))
    pieces = whole_windows(tokens, prefix, window, windows)
    costs = read_csv(sensitivity, COLUMNS) if sensitivity else None
    memory = shape.memory([4, 8, experts.bits], experts.group_size)
    counts = sorted({0, *count})
    plans = plans_of(policy, shape.plan_shape, counts, experts.bits, memory.expert, seed, costs)
    engine = open_engine(model, quantized, dtype=getattr(torch, activations), device=device)
    tables = [
        quality.window_table(
            scores,
            plan,
            memory.expert,
            corpus=corpus.name,
            method=experts.method,
            bits=experts.bits,
            policy=policy,
            seed=seed,
            equivalent_experts=number,
            activations=activations,
        )
        for scores, plan, number in zip(quality.score_plans(engine, pieces, plans), plans, counts, strict=True)
    ]
    write_csv(output, pd.concat(tables, ignore_index=True), quality.WINDOW_COLUMNS)


@app.command()
def sensitivity(
    model: Annotated[Path, typer.Option(help="model folder, tokenizer included")],
    quantized: Annotated[Path, typer.Option(help="folder of its quantised experts")],
    corpus: Annotated[list[Path], typer.Option(help="corpus folders; their validation splits are used")],
    output: Annotated[Path, typer.Option(help="table of every expert's divergence")],
    bits: Annotated[list[int] | None, typer.Option(help="precisions; those of the folder and 8 by default")] = None,
    window: WindowOption = 256,
    windows: Annotated[int, typer.Option(min=1, help="windows per corpus")] = 4,
    activations: ActivationsOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
) -> None:
    """Measure what quantising each expert alone does to the model's predictions.

    Example: `lumoe moe sensitivity --model data/models/mini-mixtral --quantized quantized --corpus corpora/scipy
    --output sensitivity.csv`
    """
    import torch

    from lumoe.files import write_csv
    from lumoe.moe.corpora import read_text
    from lumoe.moe.divergence import measure_costs
    from lumoe.moe.opening import open_engine
    from lumoe.moe.perplexity import tokenize, whole_windows
    from lumoe.moe.quantized import QuantizedExperts
    from lumoe.moe.sensitivity import COLUMNS
    from lumoe.moe.shape import read_shape

    torch.set_num_threads(threads)
    pieces = []
    for folder in corpus:
        tokens, prefix = tokenize(model, read_text(folder, "validation"))
        pieces += whole_windows(tokens, prefix, window, windows)
    shape = read_shape(model)
    # What `measure_costs` holds where the model runs: log-probabilities of every token of the windows.
    held = 4 * shape.vocab_size * sum(len(piece.inputs) for piece in pieces)
    engine = open_engine(model, quantized, dtype=getattr(torch, activations), device=device, beside_bytes=held)
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
    from lumoe.moe import quality

    scored = pd.concat([read_csv(path, quality.WINDOW_COLUMNS) for path in windows], ignore_index=True)
    write_csv(output, quality.summarise(scored, bootstrap, seed), quality.COLUMNS)
    if comparison:
        write_csv(comparison, quality.compare_policies(scored, bootstrap, seed))


@app.command("cross-check")
def cross_check(
    model: Annotated[Path, typer.Option(help="model folder, tokenizer included")],
    corpus: Annotated[list[Path], typer.Option(help="corpus folders; documents of their test splits are scored")],
    output: Annotated[Path, typer.Option(help="table of both scorers' negative log-likelihoods")],
    documents: Annotated[int, typer.Option(min=1, help="documents per corpus")] = 16,
    window: WindowOption = 256,
    threads: ThreadsOption = 1,
) -> None:
    """Score the same documents at 16 bits with the engine and with lm-eval.

    Example: `lumoe moe cross-check --model data/models/mini-mixtral --corpus corpora/scipy --output lm_eval.csv`
    """
    import pandas as pd
    import torch
    from transformers import MixtralForCausalLM

    from lumoe.files import write_csv
    from lumoe.moe import harness
    from lumoe.moe.corpora import read_documents
    from lumoe.moe.engine import Engine
    from lumoe.moe.tokenizer import load_tokenizer

    torch.set_num_threads(threads)
    # Both in float32: bfloat16's rounding is larger than what is being checked.
    engine = Engine.load(model, dtype=torch.float32)
    tokenizer = load_tokenizer(model)
    reference = MixtralForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
    tables = []
    for folder in corpus:
        texts = read_documents(folder, "test")[:documents]
        tables.append(harness.compare(engine.logits, reference, tokenizer, texts, window).assign(corpus=folder.name))
    write_csv(output, harness.per_corpus(pd.concat(tables, ignore_index=True)))


@app.command()
def plan(
    model: ModelOption,
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
    bits: BitsOption = 4,
    group_size: GroupOption = 64,
    buffer_experts: BufferOption = 2,
    prompt_tokens: PromptOption = 16,
    new_tokens: NewOption = 16,
    seed: Annotated[int, typer.Option(help="of the random choice of experts, where sensitivities are unknown")] = 0,
    output: Annotated[Path | None, typer.Option(help="write the plan as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the plan and its prediction as JSON, for programs")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="one row per expert as CSV, for programs")] = False,
) -> None:
    """Choose precision and place of every expert for a budget, and say what that will give.

    Example: `lumoe moe plan --model mixtral-8x7b --hardware a100-80gb --budget 30GB --prefer quality`
    """
    import json

    import numpy as np
    import pandas as pd

    from lumoe.cli.tables import for_programs, one_format
    from lumoe.files import write_json
    from lumoe.moe.budget import parse_budget
    from lumoe.moe.cost import Workload
    from lumoe.moe.plan import parse_preference
    from lumoe.moe.planner import Wish
    from lumoe.moe.planner_inputs import Known, build_planner, describe
    from lumoe.moe.shape import read_shape

    one_format(as_json, as_csv)
    shape = read_shape(model)
    wish = Wish(
        parse_budget(budget, shape.bytes_full), parse_preference(prefer), min_tokens_per_s, max_perplexity_increase
    )
    known = Known.find(model, measurements, hardware, quantized, perplexity)
    planner = build_planner(shape, known, Workload(prompt_tokens, new_tokens), bits, group_size, buffer_experts, seed)
    proposal = planner.propose(wish)
    result = {"model": model, "hardware": planner.hardware.name, "budget_bytes": wish.budget_bytes} | proposal.to_dict()
    if output:
        write_json(output, result)
    if as_csv:
        rows = pd.DataFrame(list(np.ndindex(proposal.plan.bits.shape)), columns=["layer", "expert"])
        rows["bits"], rows["resident"] = proposal.plan.bits.ravel(), proposal.plan.resident.ravel()
        for_programs(rows, as_json, as_csv)
    else:
        typer.echo(json.dumps(result) if as_json else describe(model, planner, wish, proposal, known))
