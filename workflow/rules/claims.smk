rule judge_claims:
    input:
        claims="data/claims.yaml",
        code=source("claims"),
        anchors=f"{RESULTS}/moe/mixtral-8x7b/anchors.csv",
        frontiers=expand(
            f"{RESULTS}/moe/{{model}}/pareto.csv", model=["mixtral-8x7b", MODEL]
        ),
        throughput=f"{RESULTS}/moe/{MODEL}/throughput.csv",
        true_scale=rules.summarize_true_scale.output,
        perplexity=f"{RESULTS}/moe/{MODEL}/perplexity.csv",
        pcnna=f"{RESULTS}/photonics/pcnna/{config['photonics']['pcnna_network']}.csv",
        pcnna_summary=f"{RESULTS}/photonics/pcnna/summary/{config['photonics']['pcnna_network']}.csv",
        winograd=f"{RESULTS}/photonics/winograd/{config['photonics']['winograd_network']}_summary.csv",
    output:
        f"{RESULTS}/claims.csv",
    log:
        "logs/judge_claims.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        model=MODEL,
        most_quantized=max(config["perplexity"]["counts"]),
        pcnna_network=config["photonics"]["pcnna_network"],
        winograd_network=config["photonics"]["winograd_network"],
    shell:
        "lumoe claims judge"
        " --claims {input.claims}"
        " --results $(dirname {output})"
        " --name model={params.model}"
        " --name most_quantized={params.most_quantized}"
        " --name pcnna_network={params.pcnna_network}"
        " --name winograd_network={params.winograd_network}"
        " --output {output}"
        " 2> {log}"


rule draw_claims:
    input:
        table=rules.judge_claims.output,
        code=source("plots/claims", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/measured/claims.svg",
            caption="../report/claims.rst",
            category="1. Claims",
        ),
        beside=multiext(f"{FIGURES}/measured/claims", ".png", ".csv"),
    log:
        "logs/draw_claims.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot claims"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule print_claims:
    # The last job of a whole run: it waits for every figure and table, then prints the verdicts.
    input:
        claims=rules.judge_claims.output,
        model=[*MODEL_CHECK, *MODEL_FIGURES],
        tables=[
            rules.cross_check_perplexity.output,
            rules.tabulate_served.output,
            rules.compare_quantizers.output,
            rules.measure_batching.output,
            rules.crosscheck_published.output,
            # Their figures are tracked, so a fresh checkout has them: ask for the tables too.
            rules.analyse_uncertainty.output,
            expand(rules.simulate_pipeline.output, design=["pcnna", "winograd"]),
            rules.explore_designs.output,
            rules.tabulate_physics.output,
            rules.draw_pcnna_waterfall.input.steps,
            rules.fine_tune_digits.output,
        ],
        serving=[
            rules.plot_throughput_memory.output,
            rules.plot_pareto.output,
            rules.plot_pareto_measured.output,
            rules.plot_prediction.output,
            rules.plot_perplexity.output,
            rules.plot_throughput.output,
            rules.plot_residency.output,
            rules.plot_adaptation.output,
            TRUE_SCALE_FIGURES,
        ],
        accelerators=[
            rules.draw_pcnna.output,
            rules.draw_pcnna_resources.output,
            rules.draw_pcnna_waterfall.output,
            rules.draw_pcnna_batches.output,
            rules.draw_winograd.output,
            rules.draw_winograd_power.output,
            rules.draw_pipeline_stall.output,
            rules.draw_photonics_pareto.output,
            rules.draw_tornados.output,
        ],
        physics=[
            rules.draw_accuracy.output,
            rules.draw_ring_spectrum.output,
            rules.draw_detector_bits.output,
            rules.draw_weight_errors.output,
        ],
        overview=rules.draw_claims.output,
    output:
        text=f"{RESULTS}/claims.txt",
        overview=f"{RESULTS}/claims_overview.csv",
    log:
        "logs/print_claims.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe claims show"
        " --table {input.claims}"
        " --overview {output.overview}"
        " 2> {log}"
        " | tee {output.text}"


rule claims:
    # `snakemake claims` judges the claims, builds just what that needs, and prints them.
    input:
        rules.judge_claims.output,
    log:
        "logs/claims.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe claims show" " --table {input}" " 2> {log}"
