def source(*modules):
    """The package's source files that a rule depends on: an edit reruns the rule, an import alone would not."""
    return [f"src/lumoe/{module}.py" for module in modules]
