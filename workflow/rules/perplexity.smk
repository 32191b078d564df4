# Quality against precision, one job per corpus and choice of experts; windows are kept, intervals come from them.
CHOSEN = QUANTIZED.format(
    method=config["quantization"]["method"],
    bits=config["quantization"]["bits"],
    group=config["quantization"]["group_size"],
)
WINDOWS = f"{RESULTS}/moe/{MODEL}/windows"
QUALITY_CODE = source(
    "moe/attention",
    "moe/experts",
    "moe/layer",
    "moe/model",
    "moe/perplexity",
    "moe/policy",
    "moe/quality",
    "moe/sensitivity",
)


rule measure_sensitivity:
    input:
        model=MODEL_FILES,
        quantized=f"{CHOSEN}/manifest.json",
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/validation.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=QUALITY_CODE,
    output:
        f"{RESULTS}/moe/{MODEL}/sensitivity.csv",
    log:
        f"logs/measure_sensitivity/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["sensitivity_windows"],
        activations=config["perplexity"]["activations"],
    shell:
        "lumoe moe sensitivity"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --window {params.window}"
        " --windows {params.windows}"
        " --activations {params.activations}"
        " --device {params.device}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule score_random:
    input:
        model=MODEL_FILES,
        quantized=f"{CHOSEN}/manifest.json",
        corpus=f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
        code=QUALITY_CODE,
    output:
        f"{WINDOWS}/{{corpus}}.random-{{seed}}.csv",
    log:
        f"logs/score_random/{MODEL}-{{corpus}}-{{seed}}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        counts=config["perplexity"]["counts"],
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["windows"],
        activations=config["perplexity"]["activations"],
    shell:
        "lumoe moe perplexity"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " --corpus $(dirname {input.corpus})"
        " $(printf -- '--count %s ' {params.counts})"
        " --policy random"
        " --seed {wildcards.seed}"
        " --window {params.window}"
        " --windows {params.windows}"
        " --activations {params.activations}"
        " --device {params.device}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule score_chosen:
    input:
        model=MODEL_FILES,
        quantized=f"{CHOSEN}/manifest.json",
        sensitivity=rules.measure_sensitivity.output,
        corpus=f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
        code=QUALITY_CODE,
    output:
        f"{WINDOWS}/{{corpus}}.{{policy}}.csv",
    log:
        f"logs/score_chosen/{MODEL}-{{corpus}}-{{policy}}.log",
    wildcard_constraints:
        policy="sensitivity|mixed",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        counts=config["perplexity"]["counts"],
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["windows"],
        activations=config["perplexity"]["activations"],
    shell:
        "lumoe moe perplexity"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " --corpus $(dirname {input.corpus})"
        " $(printf -- '--count %s ' {params.counts})"
        " --policy {wildcards.policy}"
        " --sensitivity {input.sensitivity}"
        " --window {params.window}"
        " --windows {params.windows}"
        " --activations {params.activations}"
        " --device {params.device}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule score_served:
    # No expert and every expert quantised, on the bfloat16 kernels that answer requests.
    input:
        model=MODEL_FILES,
        quantized=f"{CHOSEN}/manifest.json",
        corpus=f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
        code=[*QUALITY_CODE, *source("moe/kernels")],
    output:
        f"{WINDOWS}/{{corpus}}.served.csv",
    log:
        f"logs/score_served/{MODEL}-{{corpus}}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    resources:
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        most=max(config["perplexity"]["counts"]),
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["served_windows"],
    shell:
        "lumoe moe perplexity"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " --corpus $(dirname {input.corpus})"
        " --count {params.most}"
        " --window {params.window}"
        " --windows {params.windows}"
        " --activations bfloat16"
        " --device {params.device}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule tabulate_perplexity:
    input:
        random=expand(
            f"{WINDOWS}/{{corpus}}.random-{{seed}}.csv",
            corpus=config["corpora"]["sources"],
            seed=config["perplexity"]["seeds"],
        ),
        chosen=expand(
            f"{WINDOWS}/{{corpus}}.{{policy}}.csv",
            corpus=config["corpora"]["sources"],
            policy=config["perplexity"]["policies"],
        ),
        code=source("moe/quality", "moe/perplexity"),
    output:
        table=f"{RESULTS}/moe/{MODEL}/perplexity.csv",
        policies=f"{RESULTS}/moe/{MODEL}/policies.csv",
    log:
        f"logs/tabulate_perplexity/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    params:
        bootstrap=config["perplexity"]["bootstrap"],
        seed=SEED,
    shell:
        "lumoe moe perplexity-table"
        " {input.random}"
        " {input.chosen}"
        " --bootstrap {params.bootstrap}"
        " --seed {params.seed}"
        " --comparison {output.policies}"
        " --output {output.table}"
        " 2> {log}"


rule tabulate_served:
    input:
        windows=expand(
            f"{WINDOWS}/{{corpus}}.served.csv", corpus=config["corpora"]["sources"]
        ),
        code=source("moe/quality", "moe/perplexity"),
    output:
        f"{RESULTS}/moe/{MODEL}/perplexity-served.csv",
    log:
        f"logs/tabulate_served/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        bootstrap=config["perplexity"]["bootstrap"],
        seed=SEED,
    shell:
        "lumoe moe perplexity-table"
        " {input.windows}"
        " --bootstrap {params.bootstrap}"
        " --seed {params.seed}"
        " --output {output}"
        " 2> {log}"


rule cross_check_perplexity:
    input:
        model=MODEL_FILES,
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/attention", "moe/harness", "moe/layer", "moe/model", "moe/perplexity"
        ),
    output:
        f"{RESULTS}/moe/{MODEL}/lm_eval.csv",
    log:
        f"logs/cross_check_perplexity/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        documents=config["perplexity"]["cross_check_documents"],
        window=config["perplexity"]["window"],
    shell:
        "lumoe moe cross-check"
        " --model $(dirname {input.model})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --documents {params.documents}"
        " --window {params.window}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule plot_perplexity:
    input:
        table=rules.tabulate_perplexity.output.table,
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/moe-perplexity.svg",
            caption="../report/moe-perplexity.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/moe-perplexity", ".png", ".csv"),
    log:
        "logs/plot_perplexity/moe-perplexity.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot moe perplexity"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
