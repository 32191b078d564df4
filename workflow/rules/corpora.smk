rule build_corpora:
    # One job for all corpora: documents are deduplicated across packages.
    input:
        protocols="data/corpora.yaml",
        code=source(
            "cli/corpus",
            "moe/corpora",
            "moe/corpus_build",
            "moe/docstrings",
            "moe/text_sources",
        ),
    output:
        summary=f"{RESULTS}/corpora/corpora.csv",
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/{{file}}",
            corpus=config["corpora"]["sources"],
            file=["train.jsonl", "validation.jsonl", "test.jsonl", "statistics.json"],
        ),
    log:
        "logs/build_corpora/corpora.log",
    priority: LONG_CHAIN
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        sources=[
            f"--source={name}={place}"
            for name, place in config["corpora"]["sources"].items()
        ],
        validation=config["corpora"]["validation"],
        test=config["corpora"]["test"],
        minimum_characters=config["corpora"]["minimum_characters"],
        hub_documents=config["corpora"]["hub_documents"],
    shell:
        "lumoe corpus build"
        " {params.sources:q}"
        " --validation {params.validation}"
        " --test {params.test}"
        " --minimum-characters {params.minimum_characters}"
        " --hub-documents {params.hub_documents}"
        " --output $(dirname {output.summary})"
        " 2> {log}"
