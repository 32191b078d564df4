# PCNNA on convolution networks: in closed form, as its paper counts and with what the paper leaves out.
PCNNA_SOURCES = source(
    "photonics/pcnna",
    "photonics/pcnna_report",
    "photonics/network",
    "photonics/shapes",
    "photonics/checks",
    "photonics/devices",
    "photonics/baselines",
)
DEVICE_BASES = ["data/devices/common.yaml", "data/devices/physics.yaml"]


rule model_pcnna:
    input:
        network=TRACED,
        devices=["data/devices/pcnna.yaml", *DEVICE_BASES],
        eyeriss="data/eyeriss_layers.csv",
        code=PCNNA_SOURCES,
    output:
        layers=f"{RESULTS}/photonics/pcnna/{{network}}.csv",
        summary=f"{RESULTS}/photonics/pcnna/summary/{{network}}.csv",
    log:
        "logs/model_pcnna/{network}.log",
    wildcard_constraints:
        network="(?!batches)[^/]+",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe photonics pcnna"
        " --network {input.network}"
        " --devices {input.devices[0]}"
        " --output {output.layers}"
        " --summary {output.summary}"
        " 2> {log}"


rule draw_pcnna:
    input:
        layers=f"{RESULTS}/photonics/pcnna/{config['photonics']['pcnna_network']}.csv",
        summary=f"{RESULTS}/photonics/pcnna/summary/{config['photonics']['pcnna_network']}.csv",
        code=source("plots/photonics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/pcnna-speedup.svg",
            caption="../report/pcnna-speedup.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/pcnna-speedup", ".png", ".csv"),
    log:
        "logs/draw_pcnna.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics pcnna"
        " --table {input.layers}"
        " --summary {input.summary}"
        " --output {output.svg}"
        " 2> {log}"


rule draw_pcnna_resources:
    input:
        layers=f"{RESULTS}/photonics/pcnna/{config['photonics']['pcnna_network']}.csv",
        code=source("plots/photonics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/pcnna-resources.svg",
            caption="../report/pcnna-resources.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/pcnna-resources", ".png", ".csv"),
    log:
        "logs/draw_pcnna_resources.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics resources"
        " --table {input.layers}"
        " --output {output.svg}"
        " 2> {log}"


rule model_pcnna_waterfall:
    input:
        network=TRACED,
        grouped=expand(
            TRACED, network=config["photonics"]["remedies"]["grouped_network"]
        ),
        devices=["data/devices/pcnna.yaml", *DEVICE_BASES],
        eyeriss="data/eyeriss_layers.csv",
        code=[*PCNNA_SOURCES, *source("photonics/waterfall", "photonics/parameters")],
    output:
        f"{RESULTS}/photonics/pcnna/waterfall/{{network}}.csv",
    log:
        "logs/model_pcnna_waterfall/{network}.log",
    wildcard_constraints:
        network="[^/]+",
    conda:
        "../../envs/lumoe.yaml"
    params:
        batch=config["photonics"]["remedies"]["batch"],
        sram_width=config["photonics"]["remedies"]["sram_width"],
        weight_dacs=config["photonics"]["remedies"]["weight_dacs"],
    shell:
        "lumoe photonics waterfall"
        " --network {input.network}"
        " --grouped-network {input.grouped}"
        " --devices {input.devices[0]}"
        " --batch {params.batch}"
        " --sram-width {params.sram_width}"
        " --weight-dacs {params.weight_dacs}"
        " --output {output}"
        " 2> {log}"


rule draw_pcnna_waterfall:
    input:
        steps=f"{RESULTS}/photonics/pcnna/waterfall/{config['photonics']['pcnna_network']}.csv",
        code=source("plots/photonics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/pcnna-waterfall.svg",
            caption="../report/pcnna-waterfall.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/pcnna-waterfall", ".png", ".csv"),
    log:
        "logs/draw_pcnna_waterfall.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics waterfall"
        " --table {input.steps}"
        " --output {output.svg}"
        " 2> {log}"


rule model_pcnna_batches:
    input:
        networks=expand(TRACED, network=config["photonics"]["batches"]["networks"]),
        devices=["data/devices/pcnna.yaml", *DEVICE_BASES],
        eyeriss="data/eyeriss_layers.csv",
        code=[*PCNNA_SOURCES, *source("photonics/batches")],
    output:
        f"{RESULTS}/photonics/pcnna/batches.csv",
    log:
        "logs/model_pcnna_batches.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        batches=config["photonics"]["batches"]["batches"],
        weight_dacs=config["photonics"]["batches"]["weight_dacs"],
    shell:
        "lumoe photonics batches"
        " $(printf -- '--network %s ' {input.networks})"
        " $(printf -- '--batch %s ' {params.batches})"
        " $(printf -- '--weight-dacs %s ' {params.weight_dacs})"
        " --devices {input.devices[0]}"
        " --output {output}"
        " 2> {log}"


rule draw_pcnna_batches:
    input:
        table=f"{RESULTS}/photonics/pcnna/batches.csv",
        code=source("plots/exploration", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/pcnna-batches.svg",
            caption="../report/pcnna-batches.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/pcnna-batches", ".png", ".csv"),
    log:
        "logs/draw_pcnna_batches.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics batches"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


ACCELERATOR_SOURCES = [
    *PCNNA_SOURCES,
    *source(
        "photonics/winograd",
        "photonics/tile",
        "photonics/accelerators",
        "photonics/choices",
        "photonics/feasibility",
        "photonics/weightbank",
    ),
]


rule simulate_pipeline:
    input:
        network=expand(TRACED, network=config["photonics"]["pipeline"]["network"]),
        devices=["data/devices/pcnna.yaml", "data/devices/moderate.yaml", *DEVICE_BASES],
        code=[
            *ACCELERATOR_SOURCES,
            *source("photonics/pipeline", "photonics/pipeline_jobs"),
        ],
    output:
        f"{RESULTS}/photonics/pipeline/{{design}}.csv",
    log:
        "logs/simulate_pipeline/{design}.log",
    wildcard_constraints:
        design="pcnna|winograd",
    conda:
        "../../envs/lumoe.yaml"
    params:
        sram_kb=config["photonics"]["pipeline"]["sram_kb"],
        depth=config["photonics"]["pipeline"]["depth"],
    shell:
        "lumoe photonics simulate"
        " --network {input.network}"
        " --design {wildcards.design}"
        " $(printf -- '--cache %s ' {params.sram_kb})"
        " --depth {params.depth}"
        " --output {output}"
        " 2> {log}"


rule draw_pipeline_stall:
    input:
        tables=expand(
            f"{RESULTS}/photonics/pipeline/{{design}}.csv",
            design=["pcnna", "winograd"],
        ),
        code=source("plots/pipeline", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/pipeline-stall.svg",
            caption="../report/pipeline-stall.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/pipeline-stall", ".png", ".csv"),
    log:
        "logs/draw_pipeline_stall.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics stall"
        " $(printf -- '--table %s ' {input.tables})"
        " --output {output.svg}"
        " 2> {log}"


rule explore_designs:
    input:
        network=expand(TRACED, network=config["photonics"]["exploration"]["network"]),
        space="data/design-space.yaml",
        devices=["data/devices/pcnna.yaml", "data/devices/moderate.yaml", *DEVICE_BASES],
        code=[*ACCELERATOR_SOURCES, *source("photonics/explore")],
    output:
        f"{RESULTS}/photonics/pareto.csv",
    log:
        "logs/explore_designs.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        points=config["photonics"]["exploration"]["points"],
        least_bits=config["photonics"]["exploration"]["least_bits"],
        seed=SEED,
    shell:
        "lumoe photonics explore"
        " --network {input.network}"
        " --space {input.space}"
        " --points {params.points}"
        " --least-bits {params.least_bits}"
        " --seed {params.seed}"
        " --output {output}"
        " 2> {log}"


rule draw_photonics_pareto:
    input:
        table=f"{RESULTS}/photonics/pareto.csv",
        code=source("plots/exploration", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/photonics-pareto.svg",
            caption="../report/photonics-pareto.rst",
            category="4. Photonic accelerators",
        ),
        beside=multiext(f"{FIGURES}/photonics-pareto", ".png", ".csv"),
    log:
        "logs/draw_photonics_pareto.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot photonics exploration"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
