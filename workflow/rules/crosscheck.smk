# What others published beside what is computed here.
rule crosscheck_published:
    input:
        published="data/published.csv",
        eyeriss="data/eyeriss_layers.csv",
        baselines="data/baselines.csv",
        albireo="data/albireo.yaml",
        devices=device_sets(
            "physics", "common", "conservative", "moderate", "aggressive"
        ),
        code=code("photonics crosscheck"),
    output:
        f"{PHOTONICS}/crosscheck.csv",
    log:
        "logs/crosscheck_published.log",
    conda:
        ENVIRONMENT
    shell:
        "lumoe photonics crosscheck --published {input.published} --eyeriss {input.eyeriss}"
        " --baselines {input.baselines} --albireo {input.albireo} --output {output} 2> {log}"


TABLES += rules.crosscheck_published.output
