# Physics of the microring core, and what it does to the accuracy of a CNN on scikit-learn's digits.
ACCURACY = config["photonics"]["accuracy"]
ACCURACY_DEVICES = device_sets("physics", "common", ACCURACY["device_set"])


rule tabulate_physics:
    input:
        devices=ACCURACY_DEVICES,
        code=code("photonics physics"),
    output:
        spectrum=f"{PHOTONICS}/ring_spectrum.csv",
        bits=f"{PHOTONICS}/detector_bits.csv",
        sizes=f"{PHOTONICS}/link_sizes.csv",
        weights=f"{PHOTONICS}/weight_errors.csv",
    log:
        "logs/tabulate_physics.log",
    conda:
        ENVIRONMENT
    params:
        flags(devices=ACCURACY["device_set"], seed=SEED),
    shell:
        "lumoe photonics physics {params} --spectrum {output.spectrum} --bits {output.bits}"
        " --sizes {output.sizes} --weights {output.weights} 2> {log}"


rule train_digits:
    input:
        code=code("photonics train-digits"),
    output:
        f"{PHOTONICS}/digits.safetensors",
    log:
        "logs/train_digits.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            epochs=ACCURACY["epochs"],
            learning_rate=ACCURACY["learning_rate"],
            seed=SEED,
        ),
    shell:
        "lumoe photonics train-digits {params} --threads {threads} --output {output} > {log} 2>&1"


# One job per tile, so that they share the cores; tile 1 is direct convolution, PCNNA's.
rule evaluate_accuracy:
    input:
        model=rules.train_digits.output,
        devices=ACCURACY_DEVICES,
        code=code("photonics accuracy"),
    output:
        f"{PHOTONICS}/accuracy/tile-{{tile}}.csv",
    log:
        "logs/evaluate_accuracy/tile-{tile}.log",
    wildcard_constraints:
        tile=r"\d+",
    conda:
        ENVIRONMENT
    params:
        flags(
            tile="{tile}",
            devices=ACCURACY["device_set"],
            weight_bits=ACCURACY["weight_bits"],
            channels=ACCURACY["channels"],
            noise=ACCURACY["noise"],
            seeds=ACCURACY["seeds"],
            images=ACCURACY["images"],
        ),
    shell:
        "lumoe photonics accuracy --model {input.model} {params} --threads {threads}"
        " --output {output} 2> {log}"


TILES = expand(rules.evaluate_accuracy.output, tile=[1, *ACCURACY["tiles"]])


rule join_accuracy:
    input:
        tables=TILES,
        code=code("photonics join-accuracy"),
    output:
        accuracy=f"{PHOTONICS}/accuracy.csv",
        cheapest=f"{PHOTONICS}/accuracy_cheapest.csv",
    log:
        "logs/join_accuracy.log",
    conda:
        ENVIRONMENT
    params:
        flags(table=TILES),
    shell:
        "lumoe photonics join-accuracy {params} --output {output.accuracy}"
        " --cheapest {output.cheapest} 2> {log}"


rule fine_tune_digits:
    input:
        model=rules.train_digits.output,
        table=rules.join_accuracy.output.accuracy,
        devices=ACCURACY_DEVICES,
        code=code("photonics fine-tune"),
    output:
        f"{PHOTONICS}/accuracy_fine_tuned.csv",
    log:
        "logs/fine_tune_digits.log",
    conda:
        ENVIRONMENT
    params:
        flags(
            devices=ACCURACY["device_set"],
            epochs=ACCURACY["fine_tune_epochs"],
            learning_rate=ACCURACY["learning_rate"],
            seeds=ACCURACY["seeds"],
            images=ACCURACY["images"],
            seed=SEED,
        ),
    shell:
        "lumoe photonics fine-tune --model {input.model} --table {input.table} {params}"
        " --threads {threads} --output {output} 2> {log}"


TABLES += [rules.tabulate_physics.output.sizes, *rules.fine_tune_digits.output]
for figure, table in (
    ("accuracy", rules.join_accuracy.output.accuracy),
    ("ring_spectrum", rules.tabulate_physics.output.spectrum),
    ("detector_bits", rules.tabulate_physics.output.bits),
    ("weight_errors", rules.tabulate_physics.output.weights),
):
    command = f"physics {figure.replace('_', '-')}"
    FIGURES[figure] = Figure(command, OF_PHYSICS, {"table": table})
