# Quality against precision, one job per corpus and choice of experts; windows are kept, intervals come from them.
WINDOWS = f"{MOE}/windows/{{corpus}}"
SCORED = {
    "model": MODEL_FOLDER,
    "quantized": EXPERTS,
    "device": config["model"]["device"],
    "window": config["perplexity"]["window"],
}
SEEDS, POLICIES = config["perplexity"]["seeds"], config["perplexity"]["policies"]
INTERVALS = flags(bootstrap=config["perplexity"]["bootstrap"], seed=SEED)


rule measure_sensitivity:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        corpora=in_corpora("validation.jsonl"),
        code=code("moe sensitivity"),
    output:
        f"{MOE}/sensitivity.csv",
    log:
        f"logs/measure_sensitivity/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    resources:
        gpu=GPUS,
    params:
        flags(
            corpus=CORPORA,
            **SCORED,
            windows=config["perplexity"]["sensitivity_windows"],
            activations=config["perplexity"]["activations"],
        ),
    shell:
        "lumoe moe sensitivity {params} --threads {threads} --output {output} 2> {log}"


rule score_random:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        corpus=f"{CORPUS}/test.jsonl",
        code=code("moe perplexity"),
    output:
        f"{WINDOWS}.random-{{seed}}.csv",
    log:
        f"logs/score_random/{MODEL}-{{corpus}}-{{seed}}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    resources:
        gpu=GPUS,
    params:
        corpus=flags(corpus=CORPUS),
        chosen=flags(policy="random", seed="{seed}"),
        scored=flags(
            **SCORED,
            windows=config["perplexity"]["windows"],
            activations=config["perplexity"]["activations"],
            count=config["perplexity"]["counts"],
        ),
    shell:
        "lumoe moe perplexity {params} --threads {threads} --output {output} 2> {log}"


use rule score_random as score_chosen with:
    input:
        **rules.score_random.input,
        sensitivity=rules.measure_sensitivity.output,
    output:
        f"{WINDOWS}.{{policy}}.csv",
    log:
        f"logs/score_chosen/{MODEL}-{{corpus}}-{{policy}}.log",
    wildcard_constraints:
        policy="sensitivity|mixed",
    params:
        chosen=flags(policy="{policy}", sensitivity=rules.measure_sensitivity.output),


use rule score_random as score_served with:
    # No expert and every expert quantised, on the bfloat16 kernels that answer requests.
    output:
        f"{WINDOWS}.served.csv",
    log:
        f"logs/score_served/{MODEL}-{{corpus}}.log",
    priority: 0
    params:
        chosen=flags(count=max(config["perplexity"]["counts"])),
        scored=flags(
            **SCORED,
            windows=config["perplexity"]["served_windows"],
            activations="bfloat16",
        ),


rule tabulate_perplexity:
    input:
        random=expand(rules.score_random.output, corpus=CORPUS_NAMES, seed=SEEDS),
        chosen=expand(rules.score_chosen.output, corpus=CORPUS_NAMES, policy=POLICIES),
        code=code("moe perplexity-table"),
    output:
        table=f"{MOE}/perplexity.csv",
        policies=f"{MOE}/policies.csv",
    log:
        f"logs/tabulate_perplexity/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    params:
        INTERVALS,
    shell:
        "lumoe moe perplexity-table {input.random} {input.chosen} {params}"
        " --comparison {output.policies} --output {output.table} 2> {log}"


rule tabulate_served:
    input:
        windows=expand(rules.score_served.output, corpus=CORPUS_NAMES),
        code=code("moe perplexity-table"),
    output:
        f"{MOE}/perplexity-served.csv",
    log:
        f"logs/tabulate_served/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        INTERVALS,
    shell:
        "lumoe moe perplexity-table {input.windows} {params} --output {output} 2> {log}"


rule cross_check_perplexity:
    input:
        model=MODEL_FILES,
        corpora=in_corpora("test.jsonl"),
        code=code("moe cross-check"),
    output:
        f"{MOE}/lm_eval.csv",
    log:
        f"logs/cross_check_perplexity/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            model=MODEL_FOLDER,
            corpus=CORPORA,
            documents=config["perplexity"]["cross_check_documents"],
            window=config["perplexity"]["window"],
        ),
    shell:
        "lumoe moe cross-check {params} --threads {threads} --output {output} 2> {log}"


TABLES += [*rules.tabulate_served.output, *rules.cross_check_perplexity.output]
FIGURES["measured/moe-perplexity"] = Figure(
    "moe perplexity", OF_SERVING, {"table": rules.tabulate_perplexity.output.table}
)
