"""Microring photonic accelerators: the physics, the analog arithmetic, and the time, energy and area of designs."""
