"""A quantiser of the user's own, named `module:function` on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch

from lumoe.errors import UserError
from lumoe.files import sha256
from lumoe.moe.kernels.affine import AffineMatrix
from lumoe.named import named_function, users_code

Quantizer = Callable[[torch.Tensor, torch.Tensor, int, int], AffineMatrix | None]
"""(weight `[outputs, inputs]`, its inputs `[tokens, inputs]`, bits, group size) -> codes; None: round to nearest."""


def is_own(method: str) -> bool:
    """Whether a method names a function instead of one of the quantisers that come with the package."""
    return ":" in method


def code_of(method: str) -> str:
    """Return the SHA-256, hexadecimal, of the file that defines the function; empty where there is none.

    Raises:
        UserError: as `load_quantizer`.
    """
    file = inspect.getsourcefile(inspect.unwrap(named_function(method, "function")))
    return sha256(file) if file and Path(file).is_file() else ""


def load_quantizer(method: str) -> Quantizer:
    """Return the function that `method` names; the current folder is searched too.

    Its results are checked: codes of the weight's shape, below `2**bits`, one scale a group.

    Raises:
        UserError: the module cannot be imported or has no such function; on call, the function raised or
            returned something else.
    """
    found = named_function(method, "function")

    def checked(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group_size: int) -> AffineMatrix | None:
        with users_code(method):
            made = found(weight, inputs, bits, group_size)
        if made is None:
            return None
        if not isinstance(made, AffineMatrix):
            raise UserError(f"{method}: it returned a {type(made).__name__}, but must return an AffineMatrix or None")
        if (made.bits, made.group_size, made.codes.shape) != (bits, group_size, weight.shape) or (
            int(made.codes.max()) >= 2**bits
        ):
            raise UserError(
                f"{method}: it returned codes {tuple(made.codes.shape)} of {made.bits} bits in groups of "
                f"{made.group_size}, but {tuple(weight.shape)} of {bits} bits in groups of {group_size} are asked for"
            )
        return made

    return checked
