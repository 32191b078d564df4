"""Figures of the photonic accelerators."""
