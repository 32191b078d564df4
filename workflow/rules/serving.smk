# This machine's profile and the speed of configurations on it. Timed rules take the one timing slot.
# One thread more than compute: the slow tier's reads, and on two cores nothing else, beside what is timed.
TIMED_THREADS = config["throughput"]["threads"] + 1
# Of every rule that runs the engine.
ENGINE = {
    "model": MODEL_FOLDER,
    "quantized": EXPERTS,
    "device": config["model"]["device"],
}
PROMPTS = {
    "corpus": CORPORA,
    "prompt_tokens": config["throughput"]["prompt_tokens"],
    "new_tokens": config["throughput"]["new_tokens"],
    "seed": SEED,
}
TIMED = {
    **ENGINE,
    **PROMPTS,
    "repeats": config["throughput"]["repeats"],
    "threads": config["throughput"]["threads"],
}


rule calibrate_machine:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        code=code("moe calibrate"),
    output:
        f"{MOE}/machine.json",
    log:
        f"logs/calibrate_machine/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    threads: TIMED_THREADS
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        flags(**ENGINE, threads=config["throughput"]["threads"]),
    shell:
        "lumoe moe calibrate {params} --output {output} 2> {log}"


rule measure_throughput:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        hardware=rules.calibrate_machine.output,
        corpora=in_corpora("test.jsonl"),
        code=code("moe throughput"),
    output:
        f"{MOE}/throughput.csv",
    log:
        f"logs/measure_throughput/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    threads: TIMED_THREADS
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        flags(
            **TIMED,
            count=config["throughput"]["counts"],
            resident=config["throughput"]["resident"],
        ),
    shell:
        "lumoe moe throughput {params} --hardware {input.hardware} --output {output} 2> {log}"


rule measure_batching:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/manifest.json",
        corpora=in_corpora("test.jsonl"),
        code=code("moe batching"),
    output:
        f"{MOE}/batching.csv",
    log:
        f"logs/measure_batching/{MODEL}.log",
    conda:
        ENVIRONMENT
    threads: TIMED_THREADS
    resources:
        timing_slot=1,
        gpu=GPUS,
    params:
        flags(**TIMED, batch=config["throughput"]["batches"]),
    shell:
        "lumoe moe batching {params} --output {output} 2> {log}"


rule replay_residency:
    input:
        model=MODEL_FILES,
        quantized=f"{EXPERTS}/experts.csv",
        hardware=rules.calibrate_machine.output,
        corpora=in_corpora("train.jsonl") + in_corpora("test.jsonl"),
        code=code("moe residency"),
    output:
        table=f"{MOE}/residency.csv",
        summary=f"{MOE}/residency-calibration.csv",
    log:
        f"logs/replay_residency/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            model=MODEL_FOLDER,
            quantized=EXPERTS,
            corpus=CORPORA,
            seed=SEEDS,
        ),
    shell:
        "lumoe moe residency {params} --hardware {input.hardware} --threads {threads}"
        " --output {output.table} --summary {output.summary} 2> {log}"


TABLES += rules.measure_batching.output
for figure, command, table in (
    ("throughput", "serving throughput", rules.measure_throughput.output),
    ("moe-prediction", "moe prediction", rules.measure_throughput.output),
    ("residency", "serving residency", rules.replay_residency.output.table),
):
    FIGURES[f"measured/{figure}"] = Figure(command, OF_SERVING, {"table": table})
