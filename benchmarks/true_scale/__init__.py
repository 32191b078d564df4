"""Mixtral 8x7B's real shape on a real GPU: random weights, drawn routing, measured speed.

    python -m benchmarks.true_scale run --output data/measurements

A token's time does not depend on what the weights are, only on their shapes and on which experts are asked for. So the
weights are random and the router's logits are drawn from stated shares. Run the same command again until it says that
nothing is left; see docs/howto/true-scale.md.
"""
