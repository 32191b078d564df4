# Budget traces on the running engine, beside a static plan and a restart at each change.
rule replay_traces:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        traces=config["adaptation"]["traces"],
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/adapt",
            "moe/engine",
            "moe/preference",
            "moe/store",
            "moe/traces",
            "moe/workload",
        ),
    output:
        record=f"{RESULTS}/moe/{MODEL}/adaptation.csv",
        summary=f"{RESULTS}/moe/{MODEL}/adaptation_summary.csv",
    log:
        f"logs/replay_traces/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: config["adaptation"]["threads"]
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        device=config["model"]["device"],
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        seconds=config["adaptation"]["seconds"],
        interval=config["adaptation"]["interval"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
        seed=SEED,
    shell:
        "lumoe moe adapt"
        " --model $(dirname {input.model})"
        " --quantized $(dirname {input.quantized})"
        " $(printf -- '--trace %s ' {input.traces})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --duration {params.seconds}"
        " --interval {params.interval}"
        " --prompt-tokens {params.prompt_tokens}"
        " --new-tokens {params.new_tokens}"
        " --seed {params.seed}"
        " --device {params.device}"
        " --threads {threads}"
        " --output {output.record}"
        " --summary {output.summary}"
        " 2> {log}"


rule plot_adaptation:
    input:
        table=f"{RESULTS}/moe/{MODEL}/adaptation.csv",
        code=source("plots/adaptation", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/adaptation.svg",
            caption="../report/adaptation.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/adaptation", ".png", ".csv"),
    log:
        f"logs/plot_adaptation/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot adaptation"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
