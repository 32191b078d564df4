# The Winograd photonic accelerator: throughput, power and area for every device set and tile, and beside every
# electronic baseline.
rule model_winograd:
    input:
        network=TRACED,
        devices=expand(
            "data/devices/{set}.yaml",
            set=["physics", "common", *config["photonics"]["device_sets"]],
        ),
        baselines="data/baselines.csv",
        eyeriss="data/eyeriss_layers.csv",
        code=source(
            "photonics/winograd",
            "photonics/winograd_report",
            "photonics/winograd_link",
            "photonics/feasibility",
            "photonics/noise",
            "photonics/parameters",
            "photonics/tile",
            "photonics/shapes",
            "photonics/checks",
            "photonics/network",
            "photonics/devices",
            "photonics/baselines",
        ),
    output:
        layers=f"{RESULTS}/photonics/winograd/{{network}}.csv",
        summary=f"{RESULTS}/photonics/winograd/{{network}}_summary.csv",
    log:
        "logs/model_winograd/{network}.log",
    wildcard_constraints:
        network=r"[A-Za-z0-9_-]+(?<!_summary)",
    conda:
        "../../envs/lumoe.yaml"
    params:
        device_sets=config["photonics"]["device_sets"],
        tiles=config["photonics"]["tiles"],
        batch=config["photonics"]["batch"],
    shell:
        "lumoe photonics winograd"
        " --network {input.network}"
        " --layers {output.layers}"
        " --summary {output.summary}"
        " $(printf -- '--device-set %s ' {params.device_sets})"
        " $(printf -- '--tile %s ' {params.tiles})"
        " --batch {params.batch}"
        " --baselines {input.baselines}"
        " 2> {log}"


rule draw_winograd:
    input:
        table=f"{RESULTS}/photonics/winograd/{config['photonics']['winograd_network']}_summary.csv",
        code=source("plots/winograd", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/winograd.svg",
            caption="../report/winograd.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/winograd", ".png", ".csv"),
    log:
        "logs/draw_winograd.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics winograd"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule draw_winograd_power:
    input:
        table=f"{RESULTS}/photonics/winograd/{config['photonics']['winograd_network']}.csv",
        code=source("plots/winograd", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/winograd-power.svg",
            caption="../report/winograd-power.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/winograd-power", ".png", ".csv"),
    log:
        "logs/draw_winograd_power.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics winograd-power"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
