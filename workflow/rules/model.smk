# The checkpoint that every Mixture-of-Experts rule reads. Its manifest (or configuration) stands for all of its files:
# it holds their SHA-256 and appears last, with the whole folder.
SOURCE_KIND, _, SOURCE_PLACE = config["model"]["source"].partition(":")
MODEL_FOLDER = {
    "shipped": f"data/models/{MODEL}",
    "trained": f"{RESULTS}/training/{MODEL}",
    "folder": SOURCE_PLACE,
    "hub": f"{RESULTS}/models/{MODEL}",
}[SOURCE_KIND]
MODEL_FILES = f"{MODEL_FOLDER}/" + (
    "config.json" if SOURCE_KIND == "folder" else "manifest.json"
)
# Models with a training record are scored beside a trigram that read the same corpora.
MODEL_CHECK = (
    [f"{RESULTS}/moe/{MODEL}/model.json"]
    if SOURCE_KIND in ("shipped", "trained")
    else []
)
MODEL_FIGURES = (
    [f"{FIGURES}/{figure}.svg" for figure in ("training-loss", "expert-load")]
    if MODEL_CHECK
    else []
)


localrules:
    train,


rule train:
    # `snakemake train` trains the model anew; nothing else asks for it unless model.source is "trained".
    input:
        f"{RESULTS}/training/{MODEL}/manifest.json",


rule train_model:
    input:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/statistics.json",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/expert_batch",
            "moe/model_training",
            "moe/muon",
            "moe/tokenizer",
            "moe/train",
            "moe/training_stream",
        ),
    output:
        manifest=f"{RESULTS}/training/{MODEL}/manifest.json",
    log:
        f"logs/train_model/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        settings=[
            f"--{key.replace('_', '-')} {value}"
            for key, value in config["model"]["training"].items()
        ],
        seed=SEED,
        checkpoint=f"{RESULTS}/training/{MODEL}.checkpoint",
    shell:
        "lumoe model train"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " {params.settings}"
        " --seed {params.seed}"
        " --threads {threads}"
        " --checkpoint {params.checkpoint}"
        " --output $(dirname {output.manifest})"
        " 2> {log}"


rule fetch_model:
    output:
        manifest=f"{RESULTS}/models/{MODEL}/manifest.json",
    log:
        f"logs/fetch_model/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        repository=SOURCE_PLACE,
    shell:
        "lumoe model fetch"
        " {params.repository}"
        " --output $(dirname {output.manifest})"
        " 2> {log}"


rule check_model:
    input:
        model=MODEL_FILES,
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}/statistics.json",
            corpus=config["corpora"]["sources"],
        ),
        code=source(
            "moe/held_out",
            "moe/manifest",
            "moe/model_check",
            "moe/model_training",
            "moe/ngram",
        ),
    output:
        f"{RESULTS}/moe/{MODEL}/model.json",
    log:
        f"logs/check_model/{MODEL}.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        corpora=expand(
            f"{RESULTS}/corpora/{{corpus}}", corpus=config["corpora"]["sources"]
        ),
        window=config["perplexity"]["window"],
        windows=config["perplexity"]["windows"],
    shell:
        "lumoe model check"
        " --model $(dirname {input.model})"
        " $(printf -- '--corpus %s ' {params.corpora})"
        " --window {params.window}"
        " --windows {params.windows}"
        " --threads {threads}"
        " --output {output}"
        " 2> {log}"


rule plot_training_loss:
    input:
        model=MODEL_FILES,
        code=source("cli/plot_training", "plots/training", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/training-loss.svg",
            caption="../report/training-loss.rst",
            category="2. Model",
        ),
        png=f"{FIGURES}/training-loss.png",
        csv=f"{FIGURES}/training-loss.csv",
    log:
        "logs/plot_training_loss/training-loss.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    shell:
        "lumoe plot training loss"
        " --model $(dirname {input.model})"
        " --output {output.svg}"
        " 2> {log}"


rule plot_expert_load:
    input:
        model=MODEL_FILES,
        code=source("cli/plot_training", "plots/training", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/expert-load.svg",
            caption="../report/expert-load.rst",
            category="2. Model",
        ),
        png=f"{FIGURES}/expert-load.png",
        csv=f"{FIGURES}/expert-load.csv",
    log:
        "logs/plot_expert_load/expert-load.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    shell:
        "lumoe plot training load"
        " --model $(dirname {input.model})"
        " --output {output.svg}"
        " 2> {log}"
