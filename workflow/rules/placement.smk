# Every (quantised x resident) configuration: of published models on published hardware, of the default model on this
# machine, from the profile that `calibrate` measured.
SHAPE, HARDWARE = "data/shapes/{shape}.yaml", "placement/targets/{shape}"
CONFIGURATIONS = f"{RESULTS}/moe/{{shape}}/configurations.csv"
PARETO = f"{RESULTS}/moe/{{shape}}/pareto.csv"
SWEEP = f"{RESULTS}/moe/{{shape}}/sweep.csv"
ANCHORS = f"{RESULTS}/moe/{{shape}}/anchors.csv"
MIXTRAL = "mixtral-8x7b"
BUDGETS = config["placement"]["budgets"]
SHARES = config["placement"]["quantized_shares"]
# What is computed, and how experts are stored.
WORK = {
    "buffer_experts": config["placement"]["buffer_experts"],
    "bits": config["quantization"]["bits"],
    "group_size": config["quantization"]["group_size"],
    "prompt_tokens": config["throughput"]["prompt_tokens"],
    "new_tokens": config["throughput"]["new_tokens"],
}


rule enumerate_published:
    input:
        shape=SHAPE,
        hardware=lookup(dpath=HARDWARE, within=config),
        code=code("moe enumerate"),
    output:
        configurations=CONFIGURATIONS,
        pareto=PARETO,
        sweep=SWEEP,
    log:
        "logs/enumerate_published/{shape}.log",
    wildcard_constraints:
        shape="|".join(config["placement"]["targets"]),
    conda:
        ENVIRONMENT
    params:
        model=flags(model=SHAPE),
        budgets=lambda wildcards: flags(budget=BUDGETS[wildcards.shape]),
        work=flags(share=SHARES, **WORK),
    shell:
        "lumoe moe enumerate {params} --hardware {input.hardware} --configurations {output.configurations}"
        " --pareto {output.pareto} --sweep {output.sweep} 2> {log}"


use rule enumerate_published as enumerate_default with:
    input:
        model=MODEL_FILES,
        hardware=rules.calibrate_machine.output,
        perplexity=rules.tabulate_perplexity.output.table,
        code=code("moe enumerate"),
    output:
        configurations=CONFIGURATIONS.format(shape=MODEL),
        pareto=PARETO.format(shape=MODEL),
        sweep=SWEEP.format(shape=MODEL),
    log:
        f"logs/enumerate_default/{MODEL}.log",
    priority: LONG_CHAIN
    params:
        model=flags(
            model=MODEL_FOLDER, perplexity=rules.tabulate_perplexity.output.table
        ),
        budgets=flags(budget=BUDGETS["default"]),


rule predict_anchors:
    input:
        shape=SHAPE,
        hardware=lookup(dpath=HARDWARE, within=config),
        published="data/moe-anchors.csv",
        code=code("moe anchors"),
    output:
        ANCHORS,
    log:
        "logs/predict_anchors/{shape}.log",
    wildcard_constraints:
        shape="|".join(config["placement"]["targets"]),
    conda:
        ENVIRONMENT
    params:
        flags(**WORK),
    shell:
        "lumoe moe anchors {params} --model {input.shape} --hardware {input.hardware}"
        " --published {input.published} --output {output} 2> {log}"


FIGURES["moe-throughput-memory"] = Figure(
    "moe throughput-memory",
    OF_SERVING,
    {
        "table": CONFIGURATIONS.format(shape=MIXTRAL),
        "anchors": ANCHORS.format(shape=MIXTRAL),
    },
    options={"share": SHARES},
)
FIGURES["moe-pareto"] = Figure(
    "moe pareto", OF_SERVING, {"table": PARETO.format(shape=MIXTRAL)}
)
FIGURES["measured/moe-pareto"] = Figure(
    "moe pareto",
    OF_SERVING,
    {"table": rules.enumerate_default.output.pareto},
    title="moe-pareto-measured",
)
