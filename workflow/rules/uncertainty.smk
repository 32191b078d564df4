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
        pcnna=expand(TRACED, network=config["photonics"]["pcnna_network"]),
        winograd=expand(TRACED, network=config["photonics"]["winograd_network"]),
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
        samples=config["photonics"]["samples"],
        seed=SEED,
    shell:
        "lumoe photonics uncertainty"
        " --studies {input.studies}"
        " --output {output.table}"
        " --summary {output.summary}"
        " --pcnna-network {input.pcnna}"
        " --winograd-network {input.winograd}"
        " --samples {params.samples}"
        " --seed {params.seed}"
        " 2> {log}"


rule draw_tornados:
    # One process draws them all: each is faster drawn than started.
    input:
        table=rules.analyse_uncertainty.output.table,
        code=source("plots/uncertainty", "plots/style"),
    output:
        svg=report(
            expand(f"{FIGURES}/uncertainty-{{claim}}.svg", claim=PHOTONIC_CLAIMS),
            caption="../report/uncertainty.rst",
            category="4. Photonic accelerators",
        ),
        beside=expand(
            f"{FIGURES}/uncertainty-{{claim}}.{{suffix}}",
            claim=PHOTONIC_CLAIMS,
            suffix=["png", "csv"],
        ),
    log:
        "logs/draw_tornados.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        figures=[
            f"--claim {claim} --output {FIGURES}/uncertainty-{claim}.svg"
            for claim in PHOTONIC_CLAIMS
        ],
    shell:
        "lumoe plot photonics tornado"
        " --table {input.table}"
        " {params.figures}"
        " 2> {log}"
