# Every (quantised x resident) configuration: of published models on published hardware, of the default model on this
# machine, from the profile that `calibrate` measured.
TARGETS = config["placement"]["targets"]


rule enumerate_published:
    input:
        shape="data/shapes/{shape}.yaml",
        hardware=lookup(dpath="placement/targets/{shape}", within=config),
        code=source("moe/frontier", "moe/cost", "moe/plan", "moe/shape", "moe/hardware"),
    output:
        configurations=f"{RESULTS}/moe/{{shape}}/configurations.csv",
        pareto=f"{RESULTS}/moe/{{shape}}/pareto.csv",
        sweep=f"{RESULTS}/moe/{{shape}}/sweep.csv",
    log:
        "logs/enumerate_published/{shape}.log",
    wildcard_constraints:
        shape="|".join(TARGETS),
    conda:
        "../../envs/lumoe.yaml"
    params:
        budgets=lookup(dpath="placement/budgets/{shape}", within=config),
        shares=config["placement"]["quantized_shares"],
        buffer_experts=config["placement"]["buffer_experts"],
        bits=config["quantization"]["bits"],
        group_size=config["quantization"]["group_size"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
    shell:
        "lumoe moe enumerate"
        " --model {input.shape}"
        " --hardware {input.hardware}"
        " --configurations {output.configurations}"
        " --pareto {output.pareto}"
        " --sweep {output.sweep}"
        " $(printf -- '--budget %s ' {params.budgets})"
        " $(printf -- '--share %s ' {params.shares})"
        " --buffer-experts {params.buffer_experts}"
        " --bits {params.bits}"
        " --group-size {params.group_size}"
        " --prompt-tokens {params.prompt_tokens}"
        " --new-tokens {params.new_tokens}"
        " 2> {log}"


rule predict_anchors:
    input:
        shape="data/shapes/{shape}.yaml",
        hardware=lookup(dpath="placement/targets/{shape}", within=config),
        published="data/moe-anchors.csv",
        code=source("moe/frontier", "moe/cost", "moe/plan", "moe/shape", "moe/hardware"),
    output:
        f"{RESULTS}/moe/{{shape}}/anchors.csv",
    log:
        "logs/predict_anchors/{shape}.log",
    wildcard_constraints:
        shape="|".join(TARGETS),
    conda:
        "../../envs/lumoe.yaml"
    params:
        buffer_experts=config["placement"]["buffer_experts"],
        bits=config["quantization"]["bits"],
        group_size=config["quantization"]["group_size"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
    shell:
        "lumoe moe anchors"
        " --model {input.shape}"
        " --hardware {input.hardware}"
        " --published {input.published}"
        " --output {output}"
        " --buffer-experts {params.buffer_experts}"
        " --bits {params.bits}"
        " --group-size {params.group_size}"
        " --prompt-tokens {params.prompt_tokens}"
        " --new-tokens {params.new_tokens}"
        " 2> {log}"
