"""GPTQ (arXiv 2210.17323) by auto-gptq. The only module that knows that library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from auto_gptq.quantization import GPTQ, Quantizer

from lumoe.moe.kernels.affine import AffineMatrix, encode

log = logging.getLogger(__name__)
DAMPING = 0.01  # of the mean diagonal, the library's default


class _Bfloat16Quantizer(Quantizer):  # type: ignore[misc]
    """Scales are bfloat16 in the kernels' layout: let GPTQ compensate the error of the grid that will be used."""

    scale: torch.Tensor

    def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
        super().find_params(x, weight)
        self.scale = self.scale.to(torch.bfloat16).to(self.scale.dtype)


def gptq(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group_size: int) -> AffineMatrix | None:
    """Quantise `weight [outputs, inputs]` so that its product with `inputs [tokens, inputs]` changes least.

    Returns:
        None where the inputs' second moments cannot be inverted even with damping: the caller chooses another method.
    """
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float()
    solver = GPTQ(linear)
    solver.quantizer = _Bfloat16Quantizer()
    solver.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
    solver.add_batch(inputs.float(), None)
    try:
        with _without_cuda():
            scales, points, _ = solver.fasterquant(percdamp=DAMPING, group_size=group_size)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    result = encode(linear.weight.data, scales, points, bits)
    solver.free()
    return result


@contextmanager
def _without_cuda() -> Iterator[None]:
    """Make `torch.cuda.synchronize`, which the solver calls on every machine, a no-op where there is no CUDA."""
    if torch.cuda.is_available():
        yield
        return
    original = torch.cuda.synchronize
    torch.cuda.synchronize = lambda device=None: None
    try:
        yield
    finally:
        torch.cuda.synchronize = original
