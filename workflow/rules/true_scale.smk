# Mixtral 8x7B's real shape on a GPU: measured by benchmarks/true_scale, read here where its tables are. Without them the
# summary has no rows and there is no figure.
TRUE_SCALE_FOLDER = config["placement"]["true_scale"]
TRUE_SCALE, TRUE_SCALE_PEERS = (
    [table for table in [f"{TRUE_SCALE_FOLDER}/{name}.csv"] if exists(table)]
    for name in ("true_scale", "true_scale_peers")
)


rule summarize_true_scale:
    input:
        measured=TRUE_SCALE,
        code=code("moe true-scale"),
    output:
        f"{RESULTS}/moe/{MIXTRAL}/true-scale.csv",
    log:
        "logs/summarize_true_scale/mixtral-8x7b.log",
    conda:
        ENVIRONMENT
    params:
        flags(folder=TRUE_SCALE_FOLDER),
    shell:
        "lumoe moe true-scale {params} --output {output} > {log} 2>&1"


if TRUE_SCALE:
    FIGURES["measured/true-scale"] = Figure(
        "moe true-scale",
        OF_SERVING,
        {
            "table": TRUE_SCALE,
            "configurations": CONFIGURATIONS.format(shape=MIXTRAL),
            "anchors": ANCHORS.format(shape=MIXTRAL),
            "peers": TRUE_SCALE_PEERS,
        },
    )
    FIGURES["measured/true-scale-prediction"] = Figure(
        "moe prediction", OF_SERVING, {"table": TRUE_SCALE}
    )
