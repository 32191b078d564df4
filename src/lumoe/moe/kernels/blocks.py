"""The formats of llama.cpp's files that there is arithmetic for, as data: known before torch is loaded."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """A format's number in `codes.cpp`, and its blocks: weights along the inputs, and their bytes."""

    number: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


# By their names in ggml.
FORMATS = {
    "Q4_0": Format(0, 32, 18),
    "Q4_1": Format(1, 32, 20),
    "Q5_0": Format(2, 32, 22),
    "Q5_1": Format(3, 32, 24),
    "Q8_0": Format(4, 32, 34),
    "IQ4_NL": Format(5, 32, 18),
    "MXFP4": Format(6, 32, 17),
    "Q2_K": Format(7, 256, 84),
    "Q3_K": Format(8, 256, 110),
    "Q4_K": Format(9, 256, 144),
    "Q5_K": Format(10, 256, 176),
    "Q6_K": Format(11, 256, 210),
    "IQ4_XS": Format(12, 256, 136),
}
