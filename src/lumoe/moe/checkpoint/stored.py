"""A tensor of a checkpoint, however its files keep it: whole, as a part of a larger one, or turned round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from lumoe.errors import UserError
from lumoe.moe.architectures.names import Part
from lumoe.moe.checkpoint.safetensors import DTYPES, Entry
from lumoe.moe.kernels.affine import AffineMatrix


class Stored(Protocol):
    """A matrix or vector of a model, in a file.

    Attributes:
        name: of the tensor in its file, for messages.
        shape: as the model has it.
        entries: what of its files it is made of.
    """

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def entries(self) -> tuple[Entry, ...]: ...

    def read(self) -> torch.Tensor:
        """Return its values, in a float type.

        Raises:
            UserError: the file ends too early.
        """
        ...


@runtime_checkable
class Coded(Stored, Protocol):
    """A matrix in one of ggml's formats, which there is arithmetic for (`kernels/codes.py`).

    Attributes:
        kind: of the format, by its name there.
        direct: where the file holds the bytes of each row as they compute; None where it orders them otherwise.
    """

    @property
    def kind(self) -> str: ...

    @property
    def direct(self) -> Entry | None: ...

    def codes(self) -> torch.Tensor:
        """Return the bytes of each row, uint8 `[rows, bytes]`.

        Raises:
            UserError: the file ends too early.
        """
        ...


@runtime_checkable
class Affine(Stored, Protocol):
    """A matrix of 4-bit codes with a scale and a zero for each group of inputs.

    Attributes:
        group: inputs that share a scale.
    """

    @property
    def group(self) -> int: ...

    def affine(self) -> AffineMatrix:
        """Return the codes as the int4 kernels take them.

        Raises:
            UserError: the file ends too early, or a scale is no number.
        """
        ...


@dataclass(frozen=True)
class Rearranged:
    """A tensor whose outputs are every other one of those stored, or that is stored as `[inputs, outputs]`."""

    entry: Entry
    part: Part

    @property
    def path(self) -> Path:
        return self.entry.path

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (self.entry,)

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.entry.shape
        turned = stored[::-1] if self.part.transposed else stored
        return turned if self.part.half is None else (turned[0] // 2, *turned[1:])

    def read(self) -> torch.Tensor:
        return rearranged(self.entry.read(), self.part)


def rearranged(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    """Return the outputs of `part`, of one expert's tensor as it is stored."""
    turned = tensor.t() if part.transposed and tensor.ndim == 2 else tensor
    if part.half is not None:
        turned = turned[part.half :: 2] if part.interleaved else turned.chunk(2)[part.half]
    return turned.contiguous()


def find(entries: Mapping[str, Entry], part: Part, expert: int, experts: int) -> Stored | None:
    """Return where `part` is among tensors that are stored as numbers, if it is.

    Raises:
        UserError: it is not stored as floating-point numbers, or holds another number of experts.
    """
    entry = entries.get(part.name)
    if entry is None:
        return None
    if entry.dtype not in DTYPES.values():
        raise UserError(
            f"{entry.path}: the tensor '{entry.name}' holds {str(entry.dtype).removeprefix('torch.')}: "
            "codes, not weights; known are float32, float16 and bfloat16"
        )
    if part.stacked:
        entry = of_expert(entry, expert, experts)
    if part.leading:
        entry = entry.part(0, 1, entry.shape[1:])
    if part.half is None and not part.transposed:
        return entry
    if part.interleaved or part.transposed:
        return Rearranged(entry, part)
    return entry.part(part.half or 0, 2, (entry.shape[0] // 2, *entry.shape[1:]))


def of_expert(entry: Entry, expert: int, experts: int) -> Entry:
    """Return the part of one expert of a tensor that holds all of them.

    Raises:
        UserError: it holds another number.
    """
    if not entry.shape or entry.shape[0] != experts:
        raise UserError(
            f"{entry.path}: the tensor '{entry.name}' has shape {list(entry.shape)}, config.json says {experts} experts"
        )
    return entry.part(expert, experts, entry.shape[1:])
