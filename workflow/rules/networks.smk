# Convolution networks, traced once for all rules that model them: they read shapes and need no torch.
TRACED = f"{RESULTS}/photonics/networks/{{network}}.json"
TRACE_SOURCES = source("photonics/trace", "photonics/network", "photonics/zoo")
CONFIGURED_NETWORKS = sorted(
    {
        config["photonics"]["pcnna_network"],
        config["photonics"]["remedies"]["grouped_network"],
        *config["photonics"]["batches"]["networks"],
        config["photonics"]["pipeline"]["network"],
        config["photonics"]["exploration"]["network"],
        config["photonics"]["winograd_network"],
    }
)


rule trace_networks:
    # Those of the settings together: importing torch takes longer than tracing.
    input:
        code=TRACE_SOURCES,
    output:
        expand(TRACED, network=CONFIGURED_NETWORKS),
    log:
        "logs/trace_networks.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        networks=CONFIGURED_NETWORKS,
    shell:
        "lumoe photonics trace"
        " $(printf -- '--network %s ' {params.networks:q})"
        " --output $(dirname {output} | head -n 1)"
        " 2> {log}"


rule trace_network:
    input:
        code=TRACE_SOURCES,
    output:
        TRACED,
    log:
        "logs/trace_network/{network}.log",
    wildcard_constraints:
        network="[^/]+",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe photonics trace"
        " --network {wildcards.network:q}"
        " --output $(dirname {output})"
        " 2> {log}"


ruleorder: trace_networks > trace_network
