# Quantised experts, one file each. Only the manifest is declared: after a kill the rule goes on where it stopped.
QUANTIZED = f"{RESULTS}/moe/{MODEL}/quantized/{{method}}-{{bits}}bit-group{{group}}"


rule quantize_experts:
    input:
        model=MODEL_FILES,
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/train.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/affine",
            "moe/calibration",
            "moe/quantize",
            "moe/quantize_gptq",
            "moe/quantize_nf4",
            "moe/quantized",
        ),
    output:
        manifest=f"{QUANTIZED}/manifest.json",
        experts=f"{QUANTIZED}/experts.csv",
    log:
        f"logs/quantize_experts/{MODEL}-{{method}}-{{bits}}bit-group{{group}}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: config["quantization"]["threads"]
    params:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        tokens=config["quantization"]["calibration_tokens"],
        seed=SEED,
    shell:
        "lumoe moe quantize"
        " --model $(dirname {input.model})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --method {wildcards.method}"
        " --bits {wildcards.bits}"
        " --group-size {wildcards.group}"
        " --tokens {params.tokens}"
        " --seed {params.seed}"
        " --threads {threads}"
        " --output $(dirname {output.manifest})"
        " 2> {log}"


rule compare_quantizers:
    input:
        model=MODEL_FILES,
        quantized=expand(
            f"{RESULTS}/moe/{MODEL}/quantized/{{quantizer}}/manifest.json",
            quantizer=config["quantization"]["compared"],
        ),
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/test.jsonl",
            corpus=config["corpora"]["sources"],
        ),
        code=source("moe/perplexity", "moe/quantizers"),
    output:
        f"{RESULTS}/moe/{MODEL}/quantizers.csv",
    log:
        f"logs/compare_quantizers/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        quantized=expand(
            f"{RESULTS}/moe/{MODEL}/quantized/{{quantizer}}",
            quantizer=config["quantization"]["compared"],
        ),
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["windows"],
        bootstrap=config["perplexity"]["bootstrap"],
        seed=SEED,
    shell:
        "lumoe moe quantizers"
        " --model $(dirname {input.model})"
        " $(printf -- '--quantized %s ' {params.quantized})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --window {params.window}"
        " --windows {params.windows}"
        " --bootstrap {params.bootstrap}"
        " --seed {params.seed}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"
