# Quantised experts, one file each. Only the manifest is declared: after a kill the rule goes on where it stopped.
QUANTIZED = f"{MOE}/quantized/{{method}}-{{bits}}bit-group{{group}}"
# Those that the model is scored, timed and served with.
EXPERTS = QUANTIZED.format(
    method=config["quantization"]["method"],
    bits=config["quantization"]["bits"],
    group=config["quantization"]["group_size"],
)
COMPARED = [f"{MOE}/quantized/{name}" for name in config["quantization"]["compared"]]


rule quantize_experts:
    input:
        model=MODEL_FILES,
        corpora=in_corpora("train.jsonl"),
        code=code("moe quantize"),
    output:
        manifest=f"{QUANTIZED}/manifest.json",
        experts=f"{QUANTIZED}/experts.csv",
    log:
        f"logs/quantize_experts/{MODEL}-{{method}}-{{bits}}bit-group{{group}}.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    threads: config["quantization"]["threads"]
    params:
        flags(
            model=MODEL_FOLDER,
            corpus=CORPORA,
            method="{method}",
            bits="{bits}",
            group_size="{group}",
            tokens=config["quantization"]["calibration_tokens"],
            seed=SEED,
            output=QUANTIZED,
        ),
    # The folder is the pipeline's own: where settings, corpora or the model changed, its experts are made anew.
    shell:
        "lumoe moe quantize {params} --force --threads {threads} 2> {log}"


rule compare_quantizers:
    input:
        model=MODEL_FILES,
        quantized=[f"{folder}/manifest.json" for folder in COMPARED],
        corpora=in_corpora("test.jsonl"),
        code=code("moe quantizers"),
    output:
        f"{MOE}/quantizers.csv",
    log:
        f"logs/compare_quantizers/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            model=MODEL_FOLDER,
            quantized=COMPARED,
            corpus=CORPORA,
            window=config["perplexity"]["window"],
            windows=config["perplexity"]["windows"],
            bootstrap=config["perplexity"]["bootstrap"],
            seed=SEED,
        ),
    shell:
        "lumoe moe quantizers {params} --threads {threads} --output {output} 2> {log}"


TABLES += rules.compare_quantizers.output
