"""One file a family: how its configuration becomes an architecture, and what its tensors are called."""
