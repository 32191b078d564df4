# Budget traces on the running engine, beside a static plan and a restart at each change.
rule replay_traces:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        traces=config["adaptation"]["traces"],
        corpora=in_corpora("test.jsonl"),
        code=code("moe adapt"),
    output:
        record=f"{MOE}/adaptation.csv",
        summary=f"{MOE}/adaptation_summary.csv",
    log:
        f"logs/replay_traces/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    threads: config["adaptation"]["threads"]
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        flags(
            **ENGINE,
            **PROMPTS,
            trace=config["adaptation"]["traces"],
            duration=config["adaptation"]["seconds"],
            interval=config["adaptation"]["interval"],
        ),
    shell:
        "lumoe moe adapt {params} --threads {threads}"
        " --output {output.record} --summary {output.summary} 2> {log}"


FIGURES["measured/adaptation"] = Figure(
    "adaptation", OF_SERVING, {"table": rules.replay_traces.output.record}
)
