"""Mixture-of-Experts models under a byte budget: planned, quantised, run, measured, served."""
