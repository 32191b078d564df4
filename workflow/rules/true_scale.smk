# Mixtral 8x7B's real shape on a GPU: measured by benchmarks/true_scale, read here where its tables are. Without them the
# summary has no rows and there is no figure.
TRUE_SCALE = f"{config['placement']['true_scale']}/true_scale.csv"
TRUE_SCALE_PEERS = f"{config['placement']['true_scale']}/true_scale_peers.csv"


rule summarize_true_scale:
    input:
        measured=branch(exists(TRUE_SCALE), then=TRUE_SCALE, otherwise=[]),
        code=source("moe/true_scale"),
    output:
        f"{RESULTS}/moe/mixtral-8x7b/true-scale.csv",
    log:
        "logs/summarize_true_scale/mixtral-8x7b.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        folder=config["placement"]["true_scale"],
    shell:
        "lumoe moe true-scale"
        " --folder {params.folder}"
        " --output {output}"
        " > {log} 2>&1"


rule plot_true_scale:
    input:
        table=TRUE_SCALE,
        configurations=f"{RESULTS}/moe/mixtral-8x7b/configurations.csv",
        anchors=f"{RESULTS}/moe/mixtral-8x7b/anchors.csv",
        peers=branch(exists(TRUE_SCALE_PEERS), then=TRUE_SCALE_PEERS, otherwise=[]),
        code=source("moe/true_scale", "plots/true_scale", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/true-scale.svg",
            caption="../report/true-scale.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/true-scale", ".png", ".csv"),
    log:
        "logs/plot_true_scale/true-scale.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        peers=branch(
            exists(TRUE_SCALE_PEERS), then=f"--peers {TRUE_SCALE_PEERS}", otherwise=""
        ),
    shell:
        "lumoe plot moe true-scale"
        " --table {input.table}"
        " --configurations {input.configurations}"
        " --anchors {input.anchors}"
        " {params.peers}"
        " --output {output.svg}"
        " 2> {log}"


rule plot_true_scale_prediction:
    input:
        table=TRUE_SCALE,
        code=source("plots/moe", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/true-scale-prediction.svg",
            caption="../report/true-scale-prediction.rst",
            category="3. Mixture-of-Experts serving",
        ),
        beside=multiext(f"{FIGURES}/measured/true-scale-prediction", ".png", ".csv"),
    log:
        "logs/plot_true_scale_prediction/true-scale.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot moe prediction"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


TRUE_SCALE_FIGURES = branch(
    exists(TRUE_SCALE),
    then=[
        *rules.plot_true_scale.output,
        *rules.plot_true_scale_prediction.output,
    ],
    otherwise=[],
)
