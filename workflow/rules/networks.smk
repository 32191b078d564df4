# Convolution networks, traced once for all rules that model them: they read shapes and need no torch.
NETWORKS = f"{PHOTONICS}/networks"
TRACED = f"{NETWORKS}/{{network}}.json"
PCNNA_NETWORK = config["photonics"]["pcnna_network"]
WINOGRAD_NETWORK = config["photonics"]["winograd_network"]
CONFIGURED_NETWORKS = sorted(
    {
        PCNNA_NETWORK,
        WINOGRAD_NETWORK,
        config["photonics"]["remedies"]["grouped_network"],
        *config["photonics"]["batches"]["networks"],
        config["photonics"]["pipeline"]["network"],
        config["photonics"]["exploration"]["network"],
    }
)


rule trace_network:
    input:
        code=code("photonics trace"),
    output:
        TRACED,
    log:
        "logs/trace_network/{network}.log",
    wildcard_constraints:
        network="[^/]+",
    conda:
        ENVIRONMENT
    params:
        flags(network="{network}", output=NETWORKS),
    shell:
        "lumoe photonics trace {params} 2> {log}"


use rule trace_network as trace_networks with:
    # Those of the settings together: importing torch takes longer than tracing.
    output:
        expand(TRACED, network=CONFIGURED_NETWORKS),
    log:
        "logs/trace_networks.log",
    params:
        flags(network=CONFIGURED_NETWORKS, output=NETWORKS),


ruleorder: trace_networks > trace_network
