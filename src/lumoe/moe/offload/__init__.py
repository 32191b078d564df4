"""Experts in a fast and a slow tier: where they lie, how they move, what a miss costs."""
