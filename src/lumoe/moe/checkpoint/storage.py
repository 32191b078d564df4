"""How checkpoints may store their weights, and how memory holds them: the data that the readers here are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

# As the codes of the file, in the order that the kernels multiply; or as weights of 16 bits.
Held = Literal["codes", "16 bits"]
# Types of weights that are stored as they are, by their names in both kinds of file -> torch's names.
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Outputs and inputs that share a scale of fp8, where a configuration says nothing of them.
FP8_BLOCK = (128, 128)
# Weights that share a scale of MXFP4.
MXFP4_GROUP = 32


class Method(NamedTuple):
    """A way of quantising that `config.json` names.

    Attributes:
        about: what it is called, and what of it is read.
        bits: of a weight's code.
        group, beside: weights that usually share a scale, and the bits of it and of a zero.
        experts, rest: how memory holds the experts, and everything else.
        layouts: of the method's tensors that are read, by its own names; empty: it has one.
        unless: when the experts are expanded to 16 bits all the same.
    """

    about: str
    bits: int
    group: int
    beside: int
    experts: Held
    rest: Held
    layouts: tuple[str, ...] = ()
    unless: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits in a file, scales included."""
        return self.bits + self.beside / self.group


# By `quant_method`.
METHODS = {
    "fp8": Method(
        f"fp8 (e4m3) in blocks of {FP8_BLOCK[0]} × {FP8_BLOCK[1]}",
        bits=8,
        group=FP8_BLOCK[0] * FP8_BLOCK[1],
        beside=32,
        experts="16 bits",
        rest="16 bits",
    ),
    # Files of this kind have everything but the experts at 16 bits.
    "mxfp4": Method("MXFP4", bits=4, group=MXFP4_GROUP, beside=8, experts="codes", rest="16 bits"),
    "gptq": Method(
        "GPTQ, 4 bits",
        bits=4,
        group=128,
        beside=16 + 4,
        experts="codes",
        rest="16 bits",
        layouts=("gptq", "gptq_v2"),
        unless="`desc_act` reorders inputs",
    ),
    "awq": Method("AWQ, 4 bits", bits=4, group=128, beside=16 + 4, experts="codes", rest="16 bits", layouts=("gemm",)),
}
