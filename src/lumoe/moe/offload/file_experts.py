"""One expert: `w2 · (silu(w1·x) ∘ (w3·x))` with its weights at a precision, wherever their bytes lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.part_sizes import codes_of, held_bits
from lumoe.moe.checkpoint.safetensors import Entry, read_once
from lumoe.moe.checkpoint.stored import Affine, Coded, Stored
from lumoe.moe.checkpoint.weights import Checkpoint, check_finite
from lumoe.moe.kernels import native
from lumoe.moe.kernels import torch_kernels as kernels
from lumoe.moe.kernels.affine import AffineMatrix, pack_nibbles
from lumoe.moe.kernels.codes import finite
from lumoe.moe.model.expert import (
    MATRICES,
    CodedExpert,
    DenseExpert,
    ExpandedExpert,
    Expert,
    Int4Expert,
    Int8Expert,
    NativeExpert,
)
from lumoe.moe.offload.storage import DirectFile, Record, Spill, aligned, span, spill_folder
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.quantization.folder import QuantizedExperts

# Bits per weight above which 8 bits a weight, made here, save memory worth their loss.
_MADE_FROM = 10


class ExpertSource:
    """All experts of a model at every precision that there is: their bytes on the slow tier, and what they become.

    In bfloat16 quantised experts run on this package's kernels; without these, experts of up to 4 bits on torch's int4
    kernels, and 8-bit ones that are made here on its int8 kernels. A checkpoint in codes of its own is computed from
    those. Codes without a kernel are held as they are and expanded at each use. In float32, the type of reference runs,
    weights are expanded once and held in that type.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantized: Sequence[QuantizedExperts],
        dtype: torch.dtype,
        spill_folder: Path,
        native: bool = True,
    ) -> None:
        self.checkpoint = checkpoint
        self._native = native
        self.dtype = dtype
        self.quantized = {folder.bits: folder for folder in quantized}
        for folder in quantized:
            folder.check_fits(checkpoint)
        self._spill = Spill(spill_folder)
        self._files: dict[Path, DirectFile] = {}
        self._records: dict[tuple[int, int, int], Record] = {}
        self._checked: set[tuple[int, int]] = set()
        self._sizes: dict[int, int] = {}
        # Misses and a change of plan ask on threads of their own; the spill file and its list have one writer.
        self._record_lock = Lock()

    def check_savings(self) -> None:
        """Raise UserError where quantised experts take as much memory as those at 16 bits: quality lost for nothing.

        In float32, the type of reference runs, all of them do.
        """
        whole = self.nbytes(FULL_BITS)
        for bits, folder in self.quantized.items():
            if self.dtype == torch.bfloat16 and self.nbytes(bits) >= whole:
                raise UserError(
                    f"{folder.folder}: an expert takes {self.nbytes(bits)} bytes at {bits} bits in groups of "
                    f"{folder.group_size}, {whole} {(self.stored_as and 'as ' + self.stored_as) or 'at 16 bits'}; "
                    "quantise in larger groups"
                )

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits per weight that a plan may ask for; 16 stands for the weights as the checkpoint has them.

        8 bits are made here of weights that have more of them.
        """
        return tuple(sorted({*self.quantized, FULL_BITS} | ({8} if self.stored_bits > _MADE_FROM else set())))

    @cached_property
    def stored_bits(self) -> float:
        """Bits per weight of the experts in the checkpoint's own format, the most of any."""
        return max(held_bits(stored) for matrices in self._stored.values() for stored in matrices)

    @cached_property
    def stored_as(self) -> str:
        """What the codes are called that experts compute from at 16 bits, such as MXFP4; empty for weights."""
        if self.kernel(FULL_BITS) == "dense":
            return ""
        every = {codes_of(stored) for matrices in self._stored.values() for stored in matrices}
        return " and ".join(sorted(every - {""}))

    @cached_property
    def _stored(self) -> dict[tuple[int, int], list[Stored]]:
        """Where the three matrices of each expert lie in the checkpoint."""
        layers, experts = self.checkpoint.architecture.plan_shape
        return {
            (layer, expert): [self.checkpoint.stored(name) for name in self.checkpoint.expert_names(layer, expert)]
            for layer, expert in product(range(layers), range(experts))
        }

    @cached_property
    def _coded(self) -> dict[tuple[int, int], dict[str, str]]:
        """Formats of the matrices of each expert that computes from the codes of its file."""
        found = {}
        for at, matrices in self._stored.items():
            kinds = [stored.kind for stored in matrices if isinstance(stored, Coded)]
            if len(kinds) == len(MATRICES) and self.dtype == torch.bfloat16:
                found[at] = dict(zip(MATRICES, kinds, strict=True))
        return found

    @cached_property
    def _group(self) -> int | None:
        """Inputs that share a scale where the checkpoint has every expert in affine 4-bit codes; None elsewhere."""
        every = (stored for matrices in self._stored.values() for stored in matrices)
        groups = {stored.group if isinstance(stored, Affine) else None for stored in every}
        return groups.pop() if len(groups) == 1 else None

    def require(self, bits: Sequence[int]) -> None:
        """Raise UserError if experts at one of `bits` are not at hand."""
        for value in sorted({*bits} - {*self.precisions}):
            raise UserError(f"no experts at {value} bits: quantise them first with `lumoe moe quantize --bits {value}`")

    def kernel(self, bits: int) -> str:
        """Name of the arithmetic of experts at `bits`.

        dense, native (this package's, affine), int4 and int8 (torch's), codes (a file's own) or expanded.
        """
        if self.dtype != torch.bfloat16:
            return "dense"
        if bits in self.quantized:
            folder = self.quantized[bits]
            return self._affine_kernel(folder.group_size, bits) if folder.affine else "expanded"
        if bits != FULL_BITS:
            return "int8"
        if self._group is not None:
            return self._affine_kernel(self._group, 4)
        return "codes" if self._coded else "dense"

    def _affine_kernel(self, group: int, bits: int) -> str:
        shape = self.checkpoint.architecture
        sizes = (shape.hidden_size, shape.intermediate_size)
        if self._native and native.supported(*sizes) and native.groups_supported(group, bits):
            return "native"
        fits = all(kernels.int4_supported(kernels.CPU, n, k, group) for n, k in (sizes, sizes[::-1]))
        return "int4" if fits and bits <= 4 else "expanded"

    def _affine_bits(self, bits: int) -> int:
        """Bits of a code of experts at `bits`, which is 16 for those that the checkpoint has in 4-bit codes."""
        return bits if bits in self.quantized else 4

    def nbytes(self, bits: int) -> int:
        """Bytes of memory that one expert at `bits` takes, the largest of them where alignment makes them differ."""
        if bits not in self._sizes:
            self.require([bits])
            self._sizes[bits] = self._measure(bits)
        return self._sizes[bits]

    def _measure(self, bits: int) -> int:
        kernel = self.kernel(bits)
        if bits != FULL_BITS or self._group is not None:
            return self._laid_out(bits, kernel)
        sizes = set[int]()
        for (layer, expert), matrices in self._stored.items():
            if entries := self._direct(layer, expert, bits):
                sizes.add(self._span(entries).nbytes)
            elif (layer, expert) in self._coded:
                sizes.add(_sum_of([int(held_bits(stored) * math.prod(stored.shape)) // 8 for stored in matrices]))
            else:
                sizes.add(self._laid_out(bits, "dense"))
        return max(sizes)

    def _laid_out(self, bits: int, kernel: str) -> int:
        """Bytes of an expert in its kernel's layout."""
        shape = self.checkpoint.architecture
        hidden, wide = shape.hidden_size, shape.intermediate_size
        folder = self.quantized.get(bits)
        if kernel in ("int4", "native"):
            group = folder.group_size if folder else self._group
            assert group is not None
            first, second = 2 * wide * hidden // group * 2, hidden * wide // group * 2
            if kernel == "native":
                codes = hidden * wide * self._affine_bits(bits) // 8
                return _sum_of([2 * codes, first, first, codes, second, second])
            return _sum_of([wide * hidden, 2 * first, hidden * wide // 2, 2 * second])
        if kernel == "expanded":
            group = self._group or 0
            return _sum_of(
                folder.expert_bytes if folder else [hidden * wide // 2, *[hidden * wide // group * 2] * 2] * 3
            )
        if kernel == "int8":
            first, second = kernels.int8_inputs(hidden), kernels.int8_inputs(wide)
            return _sum_of([2 * wide * first, 2 * wide * 2, hidden * second, hidden * 2])
        return _sum_of([hidden * wide * self.dtype.itemsize] * 3)

    def record(self, layer: int, expert: int, bits: int) -> Record:
        """Return where the expert lies on the slow tier, writing it there in its kernel's layout if need be."""
        key = (layer, expert, bits)
        with self._record_lock:
            if key not in self._records:
                if entries := self._direct(layer, expert, bits):
                    self._records[key] = self._span(entries)
                else:
                    self._records[key] = self._spill.write(list(self._tensors(layer, expert, bits).items()))
            return self._records[key]

    def build(self, layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> Expert:
        """Return the expert whose record was read into `tensors`.

        Raises:
            UserError: its weights hold NaN (looked for the first time that they are read).
        """
        kinds = self._coded.get((layer, expert)) if bits == FULL_BITS else None
        if bits == FULL_BITS and (layer, expert) not in self._checked:
            self._check(layer, expert, tensors, kinds)
            self._checked.add((layer, expert))
        if kinds is not None:
            return CodedExpert(tensors, kinds)
        kernel = self.kernel(bits)
        if kernel == "native":
            return NativeExpert(tensors, self._affine_bits(bits))
        if kernel == "int4":
            group = self.quantized[bits].group_size if bits in self.quantized else self._group
            assert group is not None
            return Int4Expert(tensors, group, kernels.int4_matmul(kernels.CPU))
        if kernel == "expanded":
            return ExpandedExpert(tensors, self._affine_bits(bits))
        return Int8Expert(tensors) if kernel == "int8" else DenseExpert(tensors, self._native)

    def _check(
        self, layer: int, expert: int, tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, str] | None
    ) -> None:
        """Raise UserError if weights that come from the checkpoint's files as they are hold NaN."""
        for name, part in zip(MATRICES, self._stored[layer, expert], strict=True):
            if kinds is not None and not finite(tensors[name], kinds[name]):
                raise UserError(f"{part.path}: the tensor '{part.name}' holds NaN or infinite values")
            if isinstance(part, Entry) and name in tensors:
                check_finite(tensors[name], part)

    def _direct(self, layer: int, expert: int, bits: int) -> list[Entry] | None:
        """Return where an expert lies in the checkpoint's own files, if its bytes there are those that compute."""
        if bits != FULL_BITS:
            return None
        stored = self._stored[layer, expert]
        if (layer, expert) in self._coded:
            entries = [part.direct for part in stored if isinstance(part, Coded) and part.direct]
        else:
            entries = [part for part in stored if isinstance(part, Entry) and part.dtype == self.dtype]
        return entries if len(entries) == len(MATRICES) else None

    def _span(self, entries: Sequence[Entry]) -> Record:
        parts = zip(MATRICES, entries, strict=True)
        return span(self._files, [(name, e.path, e.offset, e.dtype, e.shape) for name, e in parts])

    def _tensors(self, layer: int, expert: int, bits: int) -> dict[str, torch.Tensor]:
        kernel = self.kernel(bits)
        if bits in self.quantized:
            folder = self.quantized[bits]
            if kernel in ("int4", "native"):
                return _laid_out([folder.matrix(layer, expert, name) for name in MATRICES], kernel)
            if kernel == "expanded":
                return folder.tensors(layer, expert)
            return {name: folder.dequantized(layer, expert, name).to(self.dtype) for name in MATRICES}
        if bits == FULL_BITS:
            stored = dict(zip(MATRICES, self._stored[layer, expert], strict=True))
            if (layer, expert) in self._coded:
                with read_once():
                    return {name: part.codes() for name, part in stored.items() if isinstance(part, Coded)}
            if kernel in ("int4", "native", "expanded"):
                return _laid_out([part.affine() for part in stored.values() if isinstance(part, Affine)], kernel)
        full = self.checkpoint.expert(layer, expert)
        if bits == FULL_BITS:
            return {name: weight.to(self.dtype) for name, weight in zip(MATRICES, full, strict=True)}
        w13, w13_scales = kernels.int8_rows(torch.cat((full[0], full[2])))
        codes, w2_scales = kernels.int8_rows(full[1])
        if kernel == "int8":
            w13, w2 = kernels.int8_packed(w13), kernels.int8_packed(codes)
            return {"w13": w13, "w13_scales": w13_scales, "w2": w2, "w2_scales": w2_scales}
        first, third = (w13.to(self.dtype) * w13_scales.to(self.dtype).unsqueeze(1)).chunk(2)
        return {"w1": first, "w2": codes.to(self.dtype) * w2_scales.to(self.dtype).unsqueeze(1), "w3": third}


def _sum_of(parts: Sequence[int]) -> int:
    """Bytes of tensors one after another, each at a multiple of 64, in whole pages."""
    return aligned(sum(aligned(part, 64) for part in parts[:-1]) + parts[-1])


def _laid_out(matrices: Sequence[AffineMatrix], kernel: str) -> dict[str, torch.Tensor]:
    w1, w2, w3 = matrices
    if kernel == "native":
        return native.expert_tensors(w1, w2, w3)
    return _packed(w1, w2, w3) if kernel == "int4" else _side_by_side(w1, w2, w3)


def _side_by_side(*matrices: AffineMatrix) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, matrix in zip(MATRICES, matrices, strict=True):
        tensors |= {f"{name}.codes": pack_nibbles(matrix.codes), f"{name}.scales": matrix.scales}
        tensors[f"{name}.zeros"] = matrix.zeros
    return tensors


def _packed(w1: AffineMatrix, w2: AffineMatrix, w3: AffineMatrix) -> dict[str, torch.Tensor]:
    w13, w13_scales = kernels.pack_int4(kernels.stack_rows(w1, w3), kernels.CPU)
    packed, w2_scales = kernels.pack_int4(w2, kernels.CPU)
    return {"w13": w13, "w13_scales": w13_scales, "w2": packed, "w2_scales": w2_scales}


def expert_bytes(model: str | Path, quantized: Path, precisions: Iterable[int]) -> dict[int, int]:
    """Return bits -> bytes that an expert really takes in RAM: whole pages, in the layout of its bfloat16 kernel.

    Raises:
        UserError: the experts are damaged, belong to another model, or are not at hand at one of the precisions.
    """
    source = ExpertSource(
        Checkpoint(model), [QuantizedExperts(quantized)], torch.bfloat16, spill_folder(None, [quantized])
    )
    return {bits: source.nbytes(bits) for bits in precisions}
