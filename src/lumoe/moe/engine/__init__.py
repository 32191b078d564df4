"""A model that runs under a plan, and changes its plan while it runs."""
