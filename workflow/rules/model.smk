# The checkpoint that every Mixture-of-Experts rule reads. Its manifest (or configuration) stands for all of its files:
# it holds their SHA-256 and appears last, with the whole folder.
SOURCE_KIND, _, SOURCE_PLACE = config["model"]["source"].partition(":")
TRAINED, FETCHED = f"{RESULTS}/training/{MODEL}", f"{RESULTS}/models/{MODEL}"
MODEL_FOLDER = {
    "shipped": f"data/models/{MODEL}",
    "trained": TRAINED,
    "folder": SOURCE_PLACE,
    "hub": FETCHED,
}[SOURCE_KIND]
MODEL_MANIFEST = {"folder": "config.json"}.get(SOURCE_KIND, "manifest.json")
MODEL_FILES = f"{MODEL_FOLDER}/{MODEL_MANIFEST}"


localrules:
    train,


rule train:
    # `snakemake train` trains the model anew; nothing else asks for it unless model.source is "trained".
    input:
        f"{TRAINED}/manifest.json",


rule train_model:
    input:
        corpora=in_corpora("statistics.json"),
        code=code("model train"),
    output:
        manifest=f"{TRAINED}/manifest.json",
    log:
        f"logs/train_model/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            corpus=CORPORA,
            **config["model"]["training"],
            seed=SEED,
            checkpoint=f"{TRAINED}.checkpoint",
            output=TRAINED,
        ),
    # The folder is the pipeline's own.
    shell:
        "lumoe model train {params} --force --threads {threads} 2> {log}"


rule fetch_model:
    # Its code is no input: an edit is no reason to download a model again.
    output:
        manifest=f"{FETCHED}/manifest.json",
    log:
        f"logs/fetch_model/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        repository=SOURCE_PLACE,
        flags=flags(output=FETCHED),
    shell:
        "lumoe model fetch {params.repository:q} {params.flags} --force 2> {log}"


rule check_model:
    input:
        model=MODEL_FILES,
        corpora=in_corpora("statistics.json"),
        code=code("model check"),
    output:
        f"{MOE}/model.json",
    log:
        f"logs/check_model/{MODEL}.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            model=MODEL_FOLDER,
            corpus=CORPORA,
            window=config["perplexity"]["window"],
            windows=config["perplexity"]["windows"],
        ),
    shell:
        "lumoe model check {params} --threads {threads} --output {output} 2> {log}"


# Models with a training record are scored beside a trigram that read the same corpora.
if SOURCE_KIND in ("shipped", "trained"):
    TABLES += rules.check_model.output
    for figure, command in {"training-loss": "loss", "expert-load": "load"}.items():
        FIGURES[figure] = Figure(
            f"training {command}",
            OF_MODEL,
            options={"model": MODEL_FOLDER},
            beside=[MODEL_FILES],
        )
