# PCNNA on convolution networks: in closed form, as its paper counts and with what the paper leaves out.
PCNNA_SOURCES = source(
    "photonics/pcnna",
    "photonics/pcnna_report",
    "photonics/network",
    "photonics/zoo",
    "photonics/shapes",
    "photonics/devices",
    "photonics/baselines",
)


rule model_pcnna:
    input:
        devices="data/devices/pcnna.yaml",
        common="data/devices/common.yaml",
        eyeriss="data/eyeriss_layers.csv",
        code=PCNNA_SOURCES,
    output:
        layers=f"{RESULTS}/photonics/pcnna/{{network}}.csv",
        summary=f"{RESULTS}/photonics/pcnna/summary/{{network}}.csv",
    log:
        "logs/model_pcnna/{network}.log",
    wildcard_constraints:
        network="[^/]+",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe photonics pcnna"
        " --network {wildcards.network}"
        " --devices {input.devices}"
        " --output {output.layers}"
        " --summary {output.summary}"
        " 2> {log}"


rule draw_pcnna:
    input:
        layers=f"{RESULTS}/photonics/pcnna/{config['photonics']['pcnna_network']}.csv",
        summary=f"{RESULTS}/photonics/pcnna/summary/{config['photonics']['pcnna_network']}.csv",
        code=source("plots/photonics", "plots/style"),
    output:
        report(
            f"{FIGURES}/pcnna_speedup.svg",
            caption="../report/pcnna_speedup.rst",
            category="4. Photonic accelerators",
        ),
        multiext(f"{FIGURES}/pcnna_speedup", ".png", ".csv"),
    log:
        "logs/draw_pcnna.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics pcnna"
        " --table {input.layers}"
        " --summary {input.summary}"
        " --output {output[0]}"
        " 2> {log}"
