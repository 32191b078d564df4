"""Texts to train, calibrate and score on."""
