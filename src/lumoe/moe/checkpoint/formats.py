"""Weights stored as codes in safetensors files: fp8 in blocks, MXFP4, and the 4 bits of GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.moe.architectures.names import Part
from lumoe.moe.checkpoint.safetensors import Entry
from lumoe.moe.checkpoint.storage import FP8_BLOCK, METHODS, MXFP4_GROUP
from lumoe.moe.checkpoint.stored import Stored, of_expert, rearranged
from lumoe.moe.kernels.affine import AffineMatrix, centre

# The values of four bits of MXFP4: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats, table 5).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_IN_WORD = 8  # codes of GPTQ and AWQ in an int32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


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
    def entries(self) -> tuple[Entry, ...]:
        """What of the files it is made of."""
        return self.entry, self.scales

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
    def entries(self) -> tuple[Entry, ...]:
        """What of the files it is made of."""
        return self.blocks, self.scales

    @property
    def shape(self) -> tuple[int, ...]:
        rows, groups = self.scales.shape
        return (rows if self.part.half is None else rows // 2), groups * MXFP4_GROUP

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


@dataclass(frozen=True)
class Int4:
    """4-bit codes of GPTQ or AWQ, eight in an int32, with a scale and a code of the value 0 for each group of inputs.

    GPTQ packs codes along the inputs, `[inputs / 8, outputs]`; AWQ along the outputs, `[inputs, outputs / 8]`, in an
    order of its own. Zeros lie along the outputs in both, `[groups, outputs / 8]`; scales are `[groups, outputs]`.

    Attributes:
        order: the group of each input, where a file has that: GPTQ's `g_idx`.
        ordered: it counts; else groups are of neighbouring inputs.
        less_one: GPTQ's first layout stores each zero less one.
    """

    weight: Entry
    zeros: Entry
    scales: Entry
    part: Part
    awq: bool
    less_one: bool
    order: Entry | None
    ordered: bool = False

    @property
    def path(self) -> Path:
        return self.weight.path

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What of the files it is made of."""
        return self.weight, self.zeros, self.scales, *([self.order] if self.order else [])

    @property
    def shape(self) -> tuple[int, ...]:
        outputs = self.scales.shape[1]
        inputs = self.weight.shape[0] * (1 if self.awq else _IN_WORD)
        return (outputs if self.part.half is None else outputs // 2), inputs

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scales.shape[0]

    def read(self) -> torch.Tensor:
        """Return the values, float32.

        Raises:
            UserError: a file ends too early, or inputs are of groups that there are not.
        """
        codes, zeros, scales = self._parts()
        if self.order is None or not self.ordered:
            groups = torch.arange(codes.shape[1]) // self.group
        else:
            groups = self.order.read().long()
            if groups.shape != codes.shape[1:] or not bool(((groups >= 0) & (groups < scales.shape[1])).all()):
                raise UserError(f"{self.path}: the tensor '{self.order.name}' names groups that there are not")
        return rearranged((codes.float() - zeros.float()[:, groups]) * scales[:, groups], self.part)

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read codes uint8 `[outputs, inputs]`; zeros uint8 and scales float32 `[outputs, groups]`."""
        order = _AWQ_ORDER if self.awq else range(_IN_WORD)
        codes, zeros = (_unpacked(entry.read(), order) for entry in (self.weight, self.zeros))
        if not self.awq:
            codes = _unpacked(self.weight.read().t(), order).t()
        if self.less_one:
            zeros = (zeros + 1) & 15
        return codes.t().contiguous(), zeros.t().contiguous(), self.scales.read().float().t().contiguous()


class RegularInt4(Int4):
    """Codes whose groups are of neighbouring inputs: what the int4 kernels multiply as it is."""

    def affine(self) -> AffineMatrix:
        """Return the codes with scales and zeros as the kernels take them, rounded to bfloat16.

        Raises:
            UserError: a file ends too early, or a scale is no number.
        """
        codes, zeros, scales = self._parts()
        if not bool(torch.isfinite(scales).all()):
            raise UserError(f"{self.path}: the tensor '{self.scales.name}' holds NaN or infinite values")
        rounded = scales.to(torch.bfloat16)
        return AffineMatrix(codes, rounded, ((centre(4) - zeros.float()) * rounded.float()).to(torch.bfloat16), 4)


def _unpacked(words: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return codes uint8 `[rows, 8 · words]` of int32 words, of which nibble i is column `order[i]` of eight."""
    nibbles = torch.stack([(words >> (4 * index)) & 15 for index in range(_IN_WORD)], dim=-1).to(torch.uint8)
    found = torch.empty_like(nibbles)
    found[..., list(order)] = nibbles
    return found.flatten(-2)


class Format:
    """How a checkpoint says that its weights are stored."""

    def __init__(self, path: Path, settings: Any) -> None:
        """Read `quantization_config` of the configuration `path`.

        Raises:
            UserError: the method is not known, or asks for something that is not decoded here.
        """
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        if not isinstance(method, str) or method not in METHODS:
            named = method or settings
            raise UserError(
                f"{path}: weights quantised with '{named}' are not supported ({', '.join(METHODS)} are); "
                "use the 16-bit checkpoint, or a GGUF file of the model"
            )
        self.method, self._settings = method, settings
        if self.method in ("gptq", "awq"):
            self._check_int4(path)
        block = settings.get("weight_block_size") or FP8_BLOCK
        if not (isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise UserError(f"{path}: 'weight_block_size' must be two whole numbers, not {block!r}")
        self.block = block[0], block[1]

    def _check_int4(self, path: Path) -> None:
        """Raise UserError where GPTQ or AWQ asks for something that is not decoded here."""
        settings, method = self._settings, self.method
        bits = settings.get("bits", settings.get("w_bit"))
        known = METHODS[method]
        if bits != known.bits:
            raise UserError(
                f"{path}: {method} at {bits} bits is not supported, {known.bits} bits are; use a GGUF file of the model"
            )
        layout = settings.get("checkpoint_format") or "gptq"
        if method == "awq":
            layout = str(settings.get("version", "gemm")).lower()
        if layout not in known.layouts:
            raise UserError(
                f"{path}: {method} in the layout '{layout}' is not supported; known: {', '.join(known.layouts)}"
            )
        if method == "awq" and settings.get("zero_point", True) is not True:
            raise UserError(f"{path}: awq without zero points is not supported")
        if any(not str(name).startswith("-:") for name in settings.get("dynamic") or ()):
            raise UserError(f"{path}: 'dynamic' gives some layers other settings, which is not supported")

    def find(self, entries: Mapping[str, Entry], part: Part, expert: int, experts: int) -> Stored | None:
        """Return where `part` is stored as codes, if it is.

        Raises:
            UserError: scales are missing or of another shape, or it holds another number of experts.
        """
        if self.method in ("gptq", "awq"):
            return self._find_int4(entries, part, expert, experts)
        return self._find_scaled(entries, part, expert, experts)

    def _find_int4(self, entries: Mapping[str, Entry], part: Part, expert: int, experts: int) -> Int4 | None:
        if not part.name.endswith("weight"):
            return None
        base, awq = part.name.removesuffix("weight"), self.method == "awq"
        weight = entries.get(f"{base}qweight")
        if weight is None:
            return None
        zeros, scales = entries.get(f"{base}qzeros"), entries.get(f"{base}scales")
        if zeros is None or scales is None:
            raise UserError(f"{weight.path}: the tensor '{weight.name}' holds codes without their scales or zeros")
        # Codes know inputs from outputs, however the same family's 16-bit files have them.
        part = replace(part, transposed=False)
        if part.stacked:
            weight, zeros, scales = (of_expert(entry, expert, experts) for entry in (weight, zeros, scales))
        self._check_shapes(weight, zeros, scales)
        settings = self._settings
        less_one = not awq and (settings.get("checkpoint_format") or "gptq") == "gptq"
        irregular = bool(settings.get("desc_act")) and settings.get("group_size") != -1
        order = entries.get(f"{base}g_idx")
        if not awq and irregular:
            if order is None:
                raise UserError(f"{weight.path}: the tensor '{base}g_idx' is missing, which 'desc_act' needs")
            return Int4(weight, zeros, scales, part, awq, less_one, order, ordered=True)
        kind = RegularInt4 if part.half is None else Int4
        return kind(weight, zeros, scales, part, awq, less_one, order)

    def _check_shapes(self, weight: Entry, zeros: Entry, scales: Entry) -> None:
        groups, outputs = (*scales.shape, 0, 0)[:2]
        inputs, columns = (*weight.shape, 0, 0)[:2]
        if self.method == "awq":
            columns *= _IN_WORD
        else:
            inputs *= _IN_WORD
        whole = weight.dtype == zeros.dtype == torch.int32 and len(weight.shape) == len(scales.shape) == 2
        fits = columns == outputs and zeros.shape == (groups, outputs // _IN_WORD) and outputs % _IN_WORD == 0
        size = self._settings.get("group_size", self._settings.get("q_group_size", 128))
        grouped = groups > 0 and inputs % groups == 0 and inputs // groups == (inputs if size == -1 else size)
        if not (whole and fits and grouped):
            raise UserError(
                f"{weight.path}: the tensor '{weight.name}' has shape {list(weight.shape)}, its scales "
                f"{list(scales.shape)}, its zeros {list(zeros.shape)}: not 4-bit codes in groups of {size}"
            )

    def _find_scaled(self, entries: Mapping[str, Entry], part: Part, expert: int, experts: int) -> Fp8 | Mxfp4 | None:
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
