# Jobs that the longest chain of the pipeline goes through start first: the short ones fill the other cores until its end.
LONG_CHAIN = 1


def source(*modules):
    """List source files of the package as inputs: an import alone would not rerun anything after an edit."""
    return [f"src/lumoe/{module}.py" for module in modules]
