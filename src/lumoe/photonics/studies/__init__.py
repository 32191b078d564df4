"""Tables that answer a question: estimates, baselines, sweeps, uncertainty, cross-checks."""
