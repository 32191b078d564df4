"""Networks as lists of layers: traced from a module, read from a file, counted as arrays."""
