"""Mixed-precision Mixture-of-Experts serving, and microring photonic accelerators."""

__version__ = "0.1.0"
