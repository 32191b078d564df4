rule judge_claims:
    input:
        claims="data/claims.yaml",
        code=code("claims judge"),
        anchors=ANCHORS.format(shape=MIXTRAL),
        frontiers=expand(PARETO, shape=[MIXTRAL, MODEL]),
        throughput=rules.measure_throughput.output,
        true_scale=rules.summarize_true_scale.output,
        perplexity=rules.tabulate_perplexity.output.table,
        pcnna=[PCNNA_LAYERS, PCNNA_SUMMARY],
        winograd=WINOGRAD_SUMMARY,
    output:
        f"{RESULTS}/claims.csv",
    log:
        "logs/judge_claims.log",
    conda:
        ENVIRONMENT
    params:
        # What fills in the paths of tables in the claims.
        flags(
            results=RESULTS,
            name=[
                f"model={MODEL}",
                f"most_quantized={max(config['perplexity']['counts'])}",
                f"pcnna_network={PCNNA_NETWORK}",
                f"winograd_network={WINOGRAD_NETWORK}",
            ],
        ),
    shell:
        "lumoe claims judge --claims {input.claims} {params} --output {output} 2> {log}"


FIGURES["measured/claims"] = Figure(
    "claims", OF_CLAIMS, {"table": rules.judge_claims.output}
)


rule claims:
    # `snakemake claims` judges the claims, builds just what that needs, and prints them.
    input:
        rules.judge_claims.output,
    log:
        "logs/claims.log",
    conda:
        ENVIRONMENT
    shell:
        "lumoe claims show --table {input} 2> {log}"


rule print_claims:
    # The last job of a whole run: it waits for every table and figure, then prints the verdicts.
    input:
        tables=TABLES,
        claims=rules.judge_claims.output,
        figures=[*map(drawn, FIGURES)],
        code=code("claims show"),
    output:
        text=f"{RESULTS}/claims.txt",
        overview=f"{RESULTS}/claims_overview.csv",
    log:
        "logs/print_claims.log",
    conda:
        ENVIRONMENT
    shell:
        "lumoe claims show --table {input.claims} --overview {output.overview} 2> {log} | tee {output.text}"
