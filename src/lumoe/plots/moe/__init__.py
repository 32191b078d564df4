"""Figures of Mixture-of-Experts serving."""
