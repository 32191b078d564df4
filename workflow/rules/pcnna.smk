# PCNNA on convolution networks: in closed form, as its paper counts and with what the paper leaves out.
PCNNA = f"{PHOTONICS}/pcnna"
PCNNA_DEVICES = device_sets("pcnna", "common", "physics")
BOTH_DEVICES = device_sets("pcnna", "moderate", "common", "physics")
REMEDIES = config["photonics"]["remedies"]


rule model_pcnna:
    input:
        network=TRACED,
        devices=PCNNA_DEVICES,
        eyeriss="data/eyeriss_layers.csv",
        code=code("photonics pcnna"),
    output:
        layers=f"{PCNNA}/{{network}}.csv",
        summary=f"{PCNNA}/summary/{{network}}.csv",
    log:
        "logs/model_pcnna/{network}.log",
    wildcard_constraints:
        network="(?!batches)[^/]+",
    conda:
        ENVIRONMENT
    shell:
        "lumoe photonics pcnna --network {input.network} --devices {input.devices[0]}"
        " --output {output.layers} --summary {output.summary} 2> {log}"


rule model_pcnna_waterfall:
    input:
        network=TRACED,
        grouped=expand(TRACED, network=REMEDIES["grouped_network"]),
        devices=PCNNA_DEVICES,
        eyeriss="data/eyeriss_layers.csv",
        code=code("photonics waterfall"),
    output:
        f"{PCNNA}/waterfall/{{network}}.csv",
    log:
        "logs/model_pcnna_waterfall/{network}.log",
    wildcard_constraints:
        network="[^/]+",
    conda:
        ENVIRONMENT
    params:
        flags(
            batch=REMEDIES["batch"],
            sram_width=REMEDIES["sram_width"],
            weight_dacs=REMEDIES["weight_dacs"],
        ),
    shell:
        "lumoe photonics waterfall --network {input.network} --grouped-network {input.grouped}"
        " --devices {input.devices[0]} {params} --output {output} 2> {log}"


rule model_pcnna_batches:
    input:
        networks=expand(TRACED, network=config["photonics"]["batches"]["networks"]),
        devices=PCNNA_DEVICES,
        eyeriss="data/eyeriss_layers.csv",
        code=code("photonics batches"),
    output:
        f"{PCNNA}/batches.csv",
    log:
        "logs/model_pcnna_batches.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            network=expand(TRACED, network=config["photonics"]["batches"]["networks"]),
            batch=config["photonics"]["batches"]["batches"],
            weight_dacs=config["photonics"]["batches"]["weight_dacs"],
        ),
    shell:
        "lumoe photonics batches {params} --devices {input.devices[0]} --output {output} 2> {log}"


rule simulate_pipeline:
    input:
        network=expand(TRACED, network=config["photonics"]["pipeline"]["network"]),
        devices=BOTH_DEVICES,
        code=code("photonics simulate"),
    output:
        f"{PHOTONICS}/pipeline/{{design}}.csv",
    log:
        "logs/simulate_pipeline/{design}.log",
    wildcard_constraints:
        design="pcnna|winograd",
    conda:
        ENVIRONMENT
    params:
        flags(
            design="{design}",
            cache=config["photonics"]["pipeline"]["sram_kb"],
            depth=config["photonics"]["pipeline"]["depth"],
        ),
    shell:
        "lumoe photonics simulate --network {input.network} {params} --output {output} 2> {log}"


rule explore_designs:
    input:
        network=expand(TRACED, network=config["photonics"]["exploration"]["network"]),
        space="data/design-space.yaml",
        devices=BOTH_DEVICES,
        code=code("photonics explore"),
    output:
        f"{PHOTONICS}/pareto.csv",
    log:
        "logs/explore_designs.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            points=config["photonics"]["exploration"]["points"],
            least_bits=config["photonics"]["exploration"]["least_bits"],
            seed=SEED,
        ),
    shell:
        "lumoe photonics explore --network {input.network} --space {input.space} {params}"
        " --output {output} 2> {log}"


# Those of the network that the claims are about.
PCNNA_LAYERS, PCNNA_SUMMARY = expand(rules.model_pcnna.output, network=PCNNA_NETWORK)
PCNNA_STEPS = expand(rules.model_pcnna_waterfall.output, network=PCNNA_NETWORK)
STALLS = expand(rules.simulate_pipeline.output, design=["pcnna", "winograd"])

for figure, command, tables in (
    ("pcnna-speedup", "pcnna", {"table": PCNNA_LAYERS, "summary": PCNNA_SUMMARY}),
    ("pcnna-resources", "resources", {"table": PCNNA_LAYERS}),
    ("pcnna-waterfall", "waterfall", {"table": PCNNA_STEPS}),
    ("pcnna-batches", "batches", {"table": rules.model_pcnna_batches.output}),
    ("pipeline-stall", "stall", {"table": STALLS}),
    ("photonics-pareto", "exploration", {"table": rules.explore_designs.output}),
):
    FIGURES[figure] = Figure(f"photonics {command}", OF_ACCELERATORS, tables)
