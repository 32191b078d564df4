# On which assumptions each claim on the photonic accelerators hangs, and in how much of their space it holds.
TORNADOS = {
    claim: f"{config['figures']}/uncertainty-{claim}"
    for claim in (
        "pcnna-optical-core",
        "pcnna-full-system",
        "winograd-speed",
        "winograd-power",
        "winograd-efficiency",
    )
}


rule analyse_uncertainty:
    input:
        pcnna=expand(TRACED, network=PCNNA_NETWORK),
        winograd=expand(TRACED, network=WINOGRAD_NETWORK),
        studies="data/uncertainty.yaml",
        devices=device_sets("physics", "common", "pcnna", "moderate"),
        baselines="data/baselines.csv",
        eyeriss="data/eyeriss_layers.csv",
        code=code("photonics uncertainty"),
    output:
        table=f"{PHOTONICS}/uncertainty.csv",
        summary=f"{PHOTONICS}/uncertainty_summary.csv",
    log:
        "logs/analyse_uncertainty.log",
    conda:
        ENVIRONMENT
    params:
        flags(samples=config["photonics"]["samples"], seed=SEED),
    shell:
        "lumoe photonics uncertainty --studies {input.studies} {params}"
        " --pcnna-network {input.pcnna} --winograd-network {input.winograd}"
        " --output {output.table} --summary {output.summary} 2> {log}"


rule draw_tornados:
    # One process draws them all: each is faster drawn than started.
    input:
        table=rules.analyse_uncertainty.output.table,
        code=code("plot photonics tornado"),
    output:
        svg=report(
            expand("{figure}.svg", figure=TORNADOS.values()),
            caption="../report/uncertainty.rst",
            category=OF_ACCELERATORS,
        ),
        beside=expand(
            "{figure}.{suffix}", figure=TORNADOS.values(), suffix=["png", "csv"]
        ),
    log:
        "logs/draw_tornados.log",
    conda:
        ENVIRONMENT
    params:
        " ".join(
            flags(claim=claim, output=f"{path}.svg")
            for claim, path in TORNADOS.items()
        ),
    shell:
        "lumoe plot photonics tornado --table {input.table} {params} 2> {log}"


TABLES += rules.analyse_uncertainty.output
FIGURES |= {f"uncertainty-{claim}": None for claim in TORNADOS}
