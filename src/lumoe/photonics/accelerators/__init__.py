"""PCNNA and the Winograd accelerator in closed form: time, energy, area and bits. numpy only."""
