# This machine's profile and the speed of configurations on it. Timed rules take the one timing slot.
EXPERTS = (
    f"{RESULTS}/moe/{MODEL}/quantized/{config['quantization']['method']}"
    f"-{config['quantization']['bits']}bit-group{config['quantization']['group_size']}"
)


rule calibrate_machine:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        code=source(
            "moe/attention",
            "moe/experts",
            "moe/layer",
            "moe/model",
            "moe/profile",
            "moe/store",
        ),
    output:
        f"{RESULTS}/moe/{MODEL}/machine.json",
    log:
        f"logs/calibrate_machine/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    # One more than compute: the slow tier's reads, and on two cores nothing else, beside what is timed.
    threads: config["throughput"]["threads"] + 1
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        threads=config["throughput"]["threads"],
    shell:
        "lumoe moe calibrate"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " --device {params.device}"
        " --threads {params.threads}"
        " --output {output}"
        " 2> {log}"


rule measure_throughput:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        hardware=f"{RESULTS}/moe/{MODEL}/machine.json",
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/attention",
            "moe/cost",
            "moe/experts",
            "moe/layer",
            "moe/model",
            "moe/store",
            "moe/throughput",
        ),
    output:
        f"{RESULTS}/moe/{MODEL}/throughput.csv",
    log:
        f"logs/measure_throughput/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    # One more than compute: the slow tier's reads, and on two cores nothing else, beside what is timed.
    threads: config["throughput"]["threads"] + 1
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        threads=config["throughput"]["threads"],
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        counts=config["throughput"]["counts"],
        resident=config["throughput"]["resident"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
        repeats=config["throughput"]["repeats"],
        seed=SEED,
    shell:
        "lumoe moe throughput"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " --hardware {input.hardware}"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " $(printf -- '--count %s ' {params.counts})"
        " $(printf -- '--resident %s ' {params.resident})"
        " --prompt-tokens {params.prompt_tokens}"
        " --new-tokens {params.new_tokens}"
        " --repeats {params.repeats}"
        " --seed {params.seed}"
        " --device {params.device}"
        " --threads {params.threads}"
        " --output {output}"
        " 2> {log}"


rule plot_throughput:
    input:
        table=f"{RESULTS}/moe/{MODEL}/throughput.csv",
        code=source("plots/serving"),
    output:
        svg=report(
            f"{FIGURES}/measured/throughput.svg",
            caption="../report/throughput.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/throughput", ".png", ".csv"),
    log:
        "logs/plot_throughput/throughput.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot serving throughput"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule measure_batching:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/attention", "moe/experts", "moe/layer", "moe/model", "moe/throughput"
        ),
    output:
        f"{RESULTS}/moe/{MODEL}/batching.csv",
    log:
        f"logs/measure_batching/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    # One more than compute: the slow tier's reads, and on two cores nothing else, beside what is timed.
    threads: config["throughput"]["threads"] + 1
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        threads=config["throughput"]["threads"],
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        batches=config["throughput"]["batches"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
        repeats=config["throughput"]["repeats"],
        seed=SEED,
    shell:
        "lumoe moe batching"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " $(printf -- '--batch %s ' {params.batches})"
        " --prompt-tokens {params.prompt_tokens}"
        " --new-tokens {params.new_tokens}"
        " --repeats {params.repeats}"
        " --seed {params.seed}"
        " --device {params.device}"
        " --threads {params.threads}"
        " --output {output}"
        " 2> {log}"


rule replay_residency:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/experts.csv",
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source("moe/layer", "moe/model", "moe/residency"),
    output:
        f"{RESULTS}/moe/{MODEL}/residency.csv",
    log:
        f"logs/replay_residency/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        seeds=config["perplexity"]["seeds"],
    shell:
        "lumoe moe residency"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " $(printf -- '--seed %s ' {params.seeds})"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule plot_residency:
    input:
        table=f"{RESULTS}/moe/{MODEL}/residency.csv",
        code=source("plots/serving"),
    output:
        svg=report(
            f"{FIGURES}/measured/residency.svg",
            caption="../report/residency.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/residency", ".png", ".csv"),
    log:
        "logs/plot_residency/residency.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot serving residency"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
