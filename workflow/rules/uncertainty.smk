# On which assumptions each claim on the photonic accelerators hangs, and in how much of their space it holds.
PHOTONIC_CLAIMS = [
    "pcnna-optical-core",
    "pcnna-full-system",
    "winograd-speed",
    "winograd-power",
    "winograd-efficiency",
]


rule analyse_uncertainty:
    input:
        studies="data/uncertainty.yaml",
        devices=expand(
            "data/devices/{set}.yaml", set=["physics", "common", "pcnna", "moderate"]
        ),
        baselines="data/baselines.csv",
        eyeriss="data/eyeriss_layers.csv",
        code=source(
            "photonics/uncertainty",
            "photonics/metrics",
            "photonics/pcnna",
            "photonics/winograd",
            "photonics/tile",
            "photonics/shapes",
            "photonics/checks",
            "photonics/network",
            "photonics/zoo",
            "photonics/devices",
            "photonics/baselines",
        ),
    output:
        table=f"{RESULTS}/photonics/uncertainty.csv",
        summary=f"{RESULTS}/photonics/uncertainty_summary.csv",
    log:
        "logs/analyse_uncertainty.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        pcnna_network=config["photonics"]["pcnna_network"],
        winograd_network=config["photonics"]["winograd_network"],
        samples=config["photonics"]["samples"],
        seed=SEED,
    shell:
        "lumoe photonics uncertainty"
        " --studies {input.studies}"
        " --output {output.table}"
        " --summary {output.summary}"
        " --pcnna-network {params.pcnna_network}"
        " --winograd-network {params.winograd_network}"
        " --samples {params.samples}"
        " --seed {params.seed}"
        " 2> {log}"


rule draw_tornado:
    input:
        table=rules.analyse_uncertainty.output.table,
        code=source("plots/uncertainty", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/uncertainty-{{claim}}.svg",
            caption="../report/uncertainty.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/uncertainty-{{claim}}", ".png", ".csv"),
    log:
        "logs/draw_tornado/{claim}.log",
    wildcard_constraints:
        claim="|".join(PHOTONIC_CLAIMS),
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics tornado"
        " --table {input.table}"
        " --claim {wildcards.claim}"
        " --output {output.svg}"
        " 2> {log}"
