"""Products with quantised weights: torch's operators, and compiled C++ where it can be built."""
