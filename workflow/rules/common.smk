def source(*modules):
    """List source files of the package as inputs: an import alone would not rerun anything after an edit."""
    return [f"src/lumoe/{module}.py" for module in modules]
