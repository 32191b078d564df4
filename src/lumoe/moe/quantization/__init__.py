"""How experts are made small: quantisers, calibration, and the folder that they leave."""
