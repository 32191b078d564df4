rule build_corpora:
    # One job for all corpora: documents are deduplicated across packages.
    input:
        protocols="data/corpora.yaml",
        code=code("corpus build"),
    output:
        summary=f"{RESULTS}/corpora/corpora.csv",
        train=in_corpora("train.jsonl"),
        validation=in_corpora("validation.jsonl"),
        test=in_corpora("test.jsonl"),
        statistics=in_corpora("statistics.json"),
    log:
        "logs/build_corpora/corpora.log",
    priority: LONG_CHAIN
    conda:
        ENVIRONMENT
    params:
        flags(
            source=[
                f"{name}={place}"
                for name, place in config["corpora"]["sources"].items()
            ],
            validation=config["corpora"]["validation"],
            test=config["corpora"]["test"],
            minimum_characters=config["corpora"]["minimum_characters"],
            hub_documents=config["corpora"]["hub_documents"],
            output=f"{RESULTS}/corpora",
        ),
    shell:
        "lumoe corpus build {params} 2> {log}"
