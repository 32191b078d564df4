"""Weights stored as codes in safetensors files: fp8 in blocks, and MXFP4. They are decoded when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.moe.architectures.names import Part
from lumoe.moe.checkpoint.safetensors import Entry
from lumoe.moe.checkpoint.stored import of_expert, rearranged

# The values of four bits of MXFP4: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats, table 5).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_GROUP = 32  # weights of MXFP4 that share a scale


@dataclass(frozen=True)
class Fp8:
    """8-bit floating-point weights `[outputs, inputs]`, with a scale for each block of so many outputs and inputs."""

    entry: Entry
    scales: Entry
    part: Part
    block: tuple[int, int]

    @property
    def path(self) -> Path:
        return self.entry.path

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors of the file that it is made of."""
        return self.entry.name, self.scales.name

    @property
    def shape(self) -> tuple[int, ...]:
        rows, inputs = self.entry.shape
        return (rows if self.part.half is None else rows // 2), inputs

    def read(self) -> torch.Tensor:
        """Return the values, float32.

        Raises:
            UserError: a file ends too early.
        """
        rows, inputs = self.entry.shape
        scales = self.scales.read().float().repeat_interleave(self.block[0], 0)[:rows]
        values = self.entry.read().float() * scales.repeat_interleave(self.block[1], 1)[:, :inputs]
        return rearranged(values, self.part)


@dataclass(frozen=True)
class Mxfp4:
    """4-bit weights `[outputs, inputs / 32, 16 bytes]`, low nibble first, and a power of two for each 32 of them."""

    blocks: Entry
    scales: Entry
    part: Part

    @property
    def path(self) -> Path:
        return self.blocks.path

    @property
    def name(self) -> str:
        return self.blocks.name

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors of the file that it is made of."""
        return self.blocks.name, self.scales.name

    @property
    def shape(self) -> tuple[int, ...]:
        rows, groups = self.scales.shape
        return (rows if self.part.half is None else rows // 2), groups * _GROUP

    def read(self) -> torch.Tensor:
        """Return the values, float32.

        Raises:
            UserError: a file ends too early.
        """
        scales = self.scales.read().int() - 127
        values = torch.ldexp(torch.tensor(E2M1)[self._unpacked().int()], scales.unsqueeze(-1))
        return rearranged(values.flatten(-2), self.part)

    kind = "MXFP4"
    direct = None  # ggml keeps a scale before its group, and halves of a group in low and high nibbles

    def codes(self) -> torch.Tensor:
        """Return rows of ggml's blocks, uint8 `[rows, inputs / 32 · 17]`.

        Raises:
            UserError: a file ends too early.
        """
        low, high = self._unpacked().chunk(2, dim=-1)
        blocks = torch.cat((self.scales.read().unsqueeze(-1), low | (high << 4)), dim=-1)
        return rearranged(blocks.flatten(-2), self.part)

    def _unpacked(self) -> torch.Tensor:
        """Read the codes, uint8 `[outputs, groups, 32]`."""
        pairs = self.blocks.read()
        return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)


class Format:
    """How a checkpoint says that its weights are stored."""

    def __init__(self, path: Path, settings: Any) -> None:
        """Read `quantization_config` of the configuration `path`.

        Raises:
            UserError: the method is not known, or asks for something that is not decoded here.
        """
        self.method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        if self.method not in ("fp8", "mxfp4"):
            named = self.method or settings
            raise UserError(
                f"{path}: weights quantised with '{named}' are not supported (fp8 in blocks and mxfp4 are); "
                "use the 16-bit checkpoint, or a GGUF file of the model"
            )
        block = settings.get("weight_block_size") or (128, 128)
        if not (isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise UserError(f"{path}: 'weight_block_size' must be two whole numbers, not {block!r}")
        self.block = block[0], block[1]

    def find(self, entries: Mapping[str, Entry], part: Part, expert: int, experts: int) -> Fp8 | Mxfp4 | None:
        """Return where `part` is stored as codes, if it is.

        Raises:
            UserError: scales are missing or of another shape, or it holds another number of experts.
        """
        if self.method == "fp8":
            entry, scales = entries.get(part.name), entries.get(f"{part.name}_scale_inv")
            if entry is None or entry.dtype != torch.float8_e4m3fn:
                return None
            codes = "weights"
        else:
            entry, scales = entries.get(f"{part.name}_blocks"), entries.get(f"{part.name}_scales")
            if entry is None:
                return None
            codes = "blocks"
        if scales is None:
            raise UserError(f"{entry.path}: the tensor '{entry.name}' holds {codes} without their scales")
        if part.stacked:
            entry, scales = of_expert(entry, expert, experts), of_expert(scales, expert, experts)
        if self.method == "fp8":
            expected = tuple(-(-n // size) for n, size in zip(entry.shape, self.block, strict=True))
            found: Fp8 | Mxfp4 = Fp8(entry, scales, part, self.block)
        else:
            # Unlike the same family's 16-bit files, outputs come first here.
            expected, found = entry.shape[:-1], Mxfp4(entry, scales, replace(part, transposed=False))
        if scales.shape != expected:
            raise UserError(
                f"{scales.path}: the tensor '{scales.name}' has shape {list(scales.shape)}, not {list(expected)}"
            )
        return found
