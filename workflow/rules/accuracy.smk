# Physics of the microring core, and what it does to the accuracy of a CNN on scikit-learn's digits.
rule tabulate_physics:
    input:
        devices=expand(
            "data/devices/{set}.yaml",
            set=["physics", "common", config["photonics"]["accuracy"]["device_set"]],
        ),
        code=source(
            "photonics/sweeps",
            "photonics/microring",
            "photonics/weightbank",
            "photonics/noise",
            "photonics/link",
            "photonics/parameters",
            "photonics/devices",
        ),
    output:
        spectrum=f"{RESULTS}/photonics/ring_spectrum.csv",
        bits=f"{RESULTS}/photonics/detector_bits.csv",
        sizes=f"{RESULTS}/photonics/link_sizes.csv",
        weights=f"{RESULTS}/photonics/weight_errors.csv",
    log:
        "logs/tabulate_physics.log",
    conda:
        "../../envs/lumoe.yaml"
    params:
        device_set=config["photonics"]["accuracy"]["device_set"],
        seed=SEED,
    shell:
        "lumoe photonics physics"
        " --spectrum {output.spectrum}"
        " --bits {output.bits}"
        " --sizes {output.sizes}"
        " --weights {output.weights}"
        " --devices {params.device_set}"
        " --seed {params.seed}"
        " 2> {log}"


rule train_digits:
    input:
        code=source("photonics/digits"),
    output:
        f"{RESULTS}/photonics/digits.safetensors",
    log:
        "logs/train_digits.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        epochs=config["photonics"]["accuracy"]["epochs"],
        learning_rate=config["photonics"]["accuracy"]["learning_rate"],
        seed=SEED,
    shell:
        "lumoe photonics train-digits"
        " --output {output}"
        " --epochs {params.epochs}"
        " --learning-rate {params.learning_rate}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"


# One job per tile, so that they share the cores; tile 1 is direct convolution, PCNNA's.
rule evaluate_accuracy:
    input:
        model=f"{RESULTS}/photonics/digits.safetensors",
        devices=expand(
            "data/devices/{set}.yaml",
            set=["physics", "common", config["photonics"]["accuracy"]["device_set"]],
        ),
        code=source(
            "photonics/accuracy",
            "photonics/digits",
            "photonics/conv",
            "photonics/winograd_conv",
            "photonics/transforms",
            "photonics/product",
            "photonics/readout",
            "photonics/core",
            "photonics/converters",
            "photonics/noise",
            "photonics/link",
            "photonics/tuning",
            "photonics/weightbank",
            "photonics/microring",
            "photonics/parameters",
        )
        + ["src/lumoe/photonics/core/readout.cpp"],
    output:
        f"{RESULTS}/photonics/accuracy/tile-{{tile}}.csv",
    log:
        "logs/evaluate_accuracy/tile-{tile}.log",
    wildcard_constraints:
        tile=r"\d+",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        device_set=config["photonics"]["accuracy"]["device_set"],
        weight_bits=config["photonics"]["accuracy"]["weight_bits"],
        channels=config["photonics"]["accuracy"]["channels"],
        noise=config["photonics"]["accuracy"]["noise"],
        seeds=config["photonics"]["accuracy"]["seeds"],
        images=config["photonics"]["accuracy"]["images"],
    shell:
        "lumoe photonics accuracy"
        " --model {input.model}"
        " --output {output}"
        " --tile {wildcards.tile}"
        " --devices {params.device_set}"
        " $(printf -- '--weight-bits %s ' {params.weight_bits})"
        " $(printf -- '--channels %s ' {params.channels})"
        " $(printf -- '--noise %s ' {params.noise})"
        " --seeds {params.seeds}"
        " --images {params.images}"
        " --threads {threads}"
        " 2> {log}"


rule join_accuracy:
    input:
        tables=expand(
            f"{RESULTS}/photonics/accuracy/tile-{{tile}}.csv",
            tile=[1, *config["photonics"]["accuracy"]["tiles"]],
        ),
        code=source("photonics/accuracy"),
    output:
        accuracy=f"{RESULTS}/photonics/accuracy.csv",
        cheapest=f"{RESULTS}/photonics/accuracy_cheapest.csv",
    log:
        "logs/join_accuracy.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe photonics join-accuracy"
        " $(printf -- '--table %s ' {input.tables})"
        " --output {output.accuracy}"
        " --cheapest {output.cheapest}"
        " 2> {log}"


rule fine_tune_digits:
    input:
        model=f"{RESULTS}/photonics/digits.safetensors",
        table=f"{RESULTS}/photonics/accuracy.csv",
        devices=expand(
            "data/devices/{set}.yaml",
            set=["physics", "common", config["photonics"]["accuracy"]["device_set"]],
        ),
        code=source(
            "photonics/accuracy",
            "photonics/digits",
            "photonics/conv",
            "photonics/product",
            "photonics/readout",
            "photonics/core",
        )
        + ["src/lumoe/photonics/core/readout.cpp"],
    output:
        f"{RESULTS}/photonics/accuracy_fine_tuned.csv",
    log:
        "logs/fine_tune_digits.log",
    conda:
        "../../envs/lumoe.yaml"
    threads: 1
    params:
        device_set=config["photonics"]["accuracy"]["device_set"],
        epochs=config["photonics"]["accuracy"]["fine_tune_epochs"],
        learning_rate=config["photonics"]["accuracy"]["learning_rate"],
        seeds=config["photonics"]["accuracy"]["seeds"],
        images=config["photonics"]["accuracy"]["images"],
        seed=SEED,
    shell:
        "lumoe photonics fine-tune"
        " --model {input.model}"
        " --table {input.table}"
        " --output {output}"
        " --devices {params.device_set}"
        " --epochs {params.epochs}"
        " --learning-rate {params.learning_rate}"
        " --seeds {params.seeds}"
        " --images {params.images}"
        " --seed {params.seed}"
        " --threads {threads}"
        " 2> {log}"


rule draw_accuracy:
    input:
        table=f"{RESULTS}/photonics/accuracy.csv",
        code=source("plots/photonic_physics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/accuracy.svg",
            caption="../report/accuracy.rst",
            category="5. Photonic physics",
        ),
        beside=multiext(f"{FIGURES}/accuracy", ".png", ".csv"),
    log:
        "logs/draw_accuracy.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot physics accuracy"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule draw_ring_spectrum:
    input:
        table=f"{RESULTS}/photonics/ring_spectrum.csv",
        code=source("plots/photonic_physics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/ring_spectrum.svg",
            caption="../report/ring_spectrum.rst",
            category="5. Photonic physics",
        ),
        beside=multiext(f"{FIGURES}/ring_spectrum", ".png", ".csv"),
    log:
        "logs/draw_ring_spectrum.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot physics ring-spectrum"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule draw_detector_bits:
    input:
        table=f"{RESULTS}/photonics/detector_bits.csv",
        code=source("plots/photonic_physics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/detector_bits.svg",
            caption="../report/detector_bits.rst",
            category="5. Photonic physics",
        ),
        beside=multiext(f"{FIGURES}/detector_bits", ".png", ".csv"),
    log:
        "logs/draw_detector_bits.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot physics detector-bits"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"


rule draw_weight_errors:
    input:
        table=f"{RESULTS}/photonics/weight_errors.csv",
        code=source("plots/photonic_physics", "plots/style"),
    output:
        svg=report(
            f"{FIGURES}/weight_errors.svg",
            caption="../report/weight_errors.rst",
            category="5. Photonic physics",
        ),
        beside=multiext(f"{FIGURES}/weight_errors", ".png", ".csv"),
    log:
        "logs/draw_weight_errors.log",
    conda:
        "../../envs/lumoe.yaml"
    shell:
        "lumoe plot physics weight-errors"
        " --table {input.table}"
        " --output {output.svg}"
        " 2> {log}"
