# What others published beside what is computed here.
rule crosscheck_published:
    input:
        published="data/published.csv",
        eyeriss="data/eyeriss_layers.csv",
        baselines="data/baselines.csv",
        albireo="data/albireo.yaml",
        devices=expand(
            "data/devices/{set}.yaml",
            set=["physics", "common", "conservative", "moderate", "aggressive"],
        ),
        code=source(
            "photonics/crosscheck",
            "photonics/pcnna",
            "photonics/shapes",
            "photonics/checks",
            "photonics/network",
            "photonics/trace",
            "photonics/zoo",
            "photonics/devices",
            "photonics/baselines",
        ),
    output:
        f"{RESULTS}/photonics/crosscheck.csv",
    log:
        "logs/crosscheck_published.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe photonics crosscheck"
        " --published {input.published}"
        " --eyeriss {input.eyeriss}"
        " --baselines {input.baselines}"
        " --albireo {input.albireo}"
        " --output {output}"
        " 2> {log}"
