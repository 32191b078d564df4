"""Figures from tables: nothing is computed here that a table does not hold."""
