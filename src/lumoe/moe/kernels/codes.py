"""Matrices in the formats of llama.cpp's files, multiplied from the codes that the files hold (`csrc/codes.cpp`).

Without the compiled kernels some rows at a time are expanded by the package `gguf`, which is exact and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from lumoe.moe.kernels import library
from lumoe.moe.kernels.blocks import FORMATS
from lumoe.moe.kernels.library import SWIGLU, Gate, codes_library, expands

Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# From this many tokens on, codes are expanded piece by piece for torch's bfloat16 product, where that is fast.
MANY_TOKENS = 32  # measured: at 16 the kernels take two thirds of the time, at 48 one and a half times as much
_PIECE = 1 << 20  # weights that are expanded together: they stay in the processor's cache


# Bytes of a block that hold its float16 scales; what is not here has powers of two.
_SCALES = {
    "Q4_0": (0, 2), "Q4_1": (0, 4), "Q5_0": (0, 2), "Q5_1": (0, 4), "Q8_0": (0, 2), "IQ4_NL": (0, 2), "Q2_K": (80, 84),
    "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210), "IQ4_XS": (0, 2),
}  # fmt: skip


def finite(codes: torch.Tensor, kind: str) -> bool:
    """Whether every weight that the codes stand for is a number: whether every scale is."""
    blocks = codes.view(-1, FORMATS[kind].nbytes)
    if kind not in _SCALES:
        return not bool((blocks[:, 0] == 255).any())
    begin, end = _SCALES[kind]
    return bool(torch.isfinite(blocks[:, begin:end].contiguous().view(torch.float16)).all())


class CodedMatrix:
    """Weights `[outputs, inputs]` as rows of a format's blocks, uint8 `[outputs, bytes]`; bfloat16 activations."""

    __slots__ = ("codes", "inputs", "kind", "number", "outputs")

    def __init__(self, codes: torch.Tensor, kind: str) -> None:
        self.codes, self.kind = codes, kind
        form = FORMATS[kind]
        self.outputs, self.inputs = codes.shape[0], codes.shape[1] // form.nbytes * form.weights
        self.number = form.number

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return self.codes.nbytes

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply `[..., inputs]` by the transposed weights."""
        found, tokens = codes_library(), hidden.numel() // self.inputs
        if found is None or by_pieces(tokens):
            return self._piecewise(hidden)
        hidden = hidden.contiguous()
        result = torch.empty((*hidden.shape[:-1], self.outputs), dtype=torch.bfloat16)
        widths = (tokens, self.outputs, self.inputs)
        scratch = torch.empty(found.lumoe_coded_linear_scratch(*widths), dtype=torch.uint8)
        found.lumoe_coded_linear(
            hidden.data_ptr(), result.data_ptr(), *widths, self.number, self.codes.data_ptr(), scratch.data_ptr()
        )
        return result

    def _piecewise(self, hidden: torch.Tensor) -> torch.Tensor:
        step = max(_PIECE // self.inputs, 1)
        pieces = [
            functional.linear(hidden, self.expand(begin, min(step, self.outputs - begin)).to(hidden.dtype))
            for begin in range(0, self.outputs, step)
        ]
        return torch.cat(pieces, dim=-1)

    def expand(self, begin: int, rows: int) -> torch.Tensor:
        """Return rows `begin ...` as bfloat16 `[rows, inputs]`."""
        found, codes = codes_library(), self.codes[begin : begin + rows]
        if found is None:
            return expanded(codes, self.kind).bfloat16()
        into = torch.empty((rows, self.inputs), dtype=torch.bfloat16)
        found.lumoe_coded_expand(into.data_ptr(), rows, self.inputs, self.number, codes.data_ptr())
        return into

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows of these numbers `[...]` as bfloat16 `[..., inputs]`."""
        found = CodedMatrix(self.codes[indices.flatten()], self.kind)
        return found.expand(0, found.outputs).view(*indices.shape, self.inputs)


class CodedExpert:
    """An expert whose matrices have a format each: w1 and w3 `[wide, hidden]`, w2 `[hidden, wide]`."""

    __slots__ = ("arguments", "w1", "w2", "w3", "widths")

    def __init__(self, tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, str]) -> None:
        self.w1, self.w2, self.w3 = (CodedMatrix(tensors[name], kinds[name]) for name in ("w1", "w2", "w3"))
        self.widths = (self.w1.inputs, self.w2.inputs)
        matrices = (self.w1, self.w2, self.w3)
        self.arguments = tuple(value for matrix in matrices for value in (matrix.number, matrix.codes.data_ptr()))

    def __call__(self, hidden: torch.Tensor, activation: Gated | None = None, gate: Gate | None = None) -> torch.Tensor:
        """Map `[tokens, hidden]` to the same shape.

        Args:
            activation: in place of silu(gate) · up.
            gate: what the kernel computes that is the same; None: it has none, which takes three calls.
        """
        gate = SWIGLU if activation is None else gate
        if gate is not None and not by_pieces(hidden.shape[0]):
            output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
            run_together([self], [0, hidden.shape[0]], hidden, output, [gate])
            return output
        first, third = self.w1(hidden), self.w3(hidden)
        return self.w2(functional.silu(first) * third if activation is None else activation(first, third))


def by_pieces(tokens: int) -> bool:
    """Whether an expert of so many tokens is computed matrix by matrix, of expanded weights."""
    return codes_library() is None or (tokens >= MANY_TOKENS and expands())


def run_together(
    experts: Sequence[CodedExpert],
    ends: Sequence[int],
    hidden: torch.Tensor,
    output: torch.Tensor,
    gates: Sequence[Gate] | None = None,
) -> None:
    """Compute several experts in one call, as `library.run_together`; fewer tokens each than go `by_pieces`."""
    found = codes_library()
    assert found is not None
    library.run_together(
        found.lumoe_coded_experts, found.lumoe_coded_expert_scratch, experts, ends, hidden, output, gates
    )


def expanded(codes: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the values that rows of blocks stand for, float32 `[outputs, inputs]`."""
    import gguf
    import numpy as np

    values = gguf.quants.dequantize(codes.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(len(codes), -1)
