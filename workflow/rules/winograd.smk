# The Winograd photonic accelerator: throughput, power and area for every device set and tile, and beside every
# electronic baseline.
rule model_winograd:
    input:
        network=TRACED,
        devices=device_sets("physics", "common", *config["photonics"]["device_sets"]),
        baselines="data/baselines.csv",
        eyeriss="data/eyeriss_layers.csv",
        code=code("photonics winograd"),
    output:
        layers=f"{PHOTONICS}/winograd/{{network}}.csv",
        summary=f"{PHOTONICS}/winograd/{{network}}_summary.csv",
    log:
        "logs/model_winograd/{network}.log",
    wildcard_constraints:
        network=r"[A-Za-z0-9_-]+(?<!_summary)",
    conda:
        ENVIRONMENT
    params:
        flags(
            device_set=config["photonics"]["device_sets"],
            tile=config["photonics"]["tiles"],
            batch=config["photonics"]["batch"],
        ),
    shell:
        "lumoe photonics winograd --network {input.network} --baselines {input.baselines} {params}"
        " --layers {output.layers} --summary {output.summary} 2> {log}"


WINOGRAD_LAYERS, WINOGRAD_SUMMARY = expand(
    rules.model_winograd.output, network=WINOGRAD_NETWORK
)

for figure, table in (
    ("winograd", WINOGRAD_SUMMARY),
    ("winograd-power", WINOGRAD_LAYERS),
):
    FIGURES[figure] = Figure(f"photonics {figure}", OF_ACCELERATORS, {"table": table})
