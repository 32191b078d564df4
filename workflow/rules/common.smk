# Jobs that the longest chain of the pipeline goes through start first: the short ones fill the other cores until its end.
LONG_CHAIN = 1

# What a rule that runs the model asks for, of the one `gpu` that profiles/default has to give.
GPUS = int(config["model"]["device"] != "cpu")


def source(*modules):
    """List source files of the package as inputs: an import alone would not rerun anything after an edit."""
    return [f"src/lumoe/{module}.py" for module in modules]
