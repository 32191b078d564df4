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


rule enumerate_default:
    input:
        model=MODEL_FILES,
        hardware=f"{RESULTS}/moe/{MODEL}/machine.json",
        perplexity=f"{RESULTS}/moe/{MODEL}/perplexity.csv",
        code=source("moe/frontier", "moe/cost", "moe/plan", "moe/shape", "moe/hardware"),
    output:
        configurations=f"{RESULTS}/moe/{MODEL}/configurations.csv",
        pareto=f"{RESULTS}/moe/{MODEL}/pareto.csv",
        sweep=f"{RESULTS}/moe/{MODEL}/sweep.csv",
    log:
        f"logs/enumerate_default/{MODEL}.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    params:
        budgets=config["placement"]["budgets"]["default"],
        shares=config["placement"]["quantized_shares"],
        buffer_experts=config["placement"]["buffer_experts"],
        bits=config["quantization"]["bits"],
        group_size=config["quantization"]["group_size"],
        prompt_tokens=config["throughput"]["prompt_tokens"],
        new_tokens=config["throughput"]["new_tokens"],
    shell:
        "lumoe moe enumerate"
        " --model $(dirname {input.model})"
        " --hardware {input.hardware}"
        " --perplexity {input.perplexity}"
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


rule plot_throughput_memory:
    input:
        table=f"{RESULTS}/moe/mixtral-8x7b/configurations.csv",
        anchors=f"{RESULTS}/moe/mixtral-8x7b/anchors.csv",
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/moe-throughput-memory.svg",
            caption="../report/moe-throughput-memory.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/moe-throughput-memory", ".png", ".csv"),
    log:
        "logs/plot_throughput_memory/moe-throughput-memory.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        shares=config["placement"]["quantized_shares"],
    shell:
        "lumoe plot moe throughput-memory"
        " --table {input.table}"
        " --anchors {input.anchors}"
        " $(printf -- '--share %s ' {params.shares})"
        " --output {output.svg}"
        " 2> {log}"


rule plot_pareto:
    input:
        table=f"{RESULTS}/moe/mixtral-8x7b/pareto.csv",
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/moe-pareto.svg",
            caption="../report/moe-pareto.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/moe-pareto", ".png", ".csv"),
    log:
        "logs/plot_pareto/moe-pareto.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot moe pareto"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule plot_pareto_measured:
    input:
        table=rules.enumerate_default.output.pareto,
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/moe-pareto.svg",
            caption="../report/moe-pareto-measured.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/moe-pareto", ".png", ".csv"),
    log:
        "logs/plot_pareto_measured/moe-pareto.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot moe pareto"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule plot_prediction:
    input:
        table=f"{RESULTS}/moe/{MODEL}/throughput.csv",
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/moe-prediction.svg",
            caption="../report/moe-prediction.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/moe-prediction", ".png", ".csv"),
    log:
        "logs/plot_prediction/moe-prediction.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot moe prediction"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
