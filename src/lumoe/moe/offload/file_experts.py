"""One expert: `w2 · (silu(w1·x) ∘ (w3·x))` with its weights at a precision, wherever their bytes lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.safetensors import Entry
from lumoe.moe.checkpoint.weights import Checkpoint, check_finite
from lumoe.moe.kernels import native
from lumoe.moe.kernels import torch_kernels as kernels
from lumoe.moe.kernels.affine import AffineMatrix
from lumoe.moe.model.expert import (
    MATRICES,
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


class ExpertSource:
    """All experts of a model at every precision that there is: their bytes on the slow tier, and what they become.

    In bfloat16 the 4-, 3- and 2-bit experts run on int4 kernels, and 8-bit ones that are made here on int8 kernels.
    Codes of formats without a kernel are held as they are and expanded at each use. In float32, the type of reference
    runs, weights are expanded once and held in that type.
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
                    f"{folder.group_size}, {whole} at 16 bits; quantise in larger groups"
                )

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits per weight that a plan may ask for."""
        return tuple(sorted({*self.quantized, 8, FULL_BITS}))

    def require(self, bits: Sequence[int]) -> None:
        """Raise UserError if experts at one of `bits` are not at hand."""
        for value in sorted({*bits} - {*self.precisions}):
            raise UserError(f"no experts at {value} bits: quantise them first with `lumoe moe quantize --bits {value}`")

    def kernel(self, bits: int) -> str:
        """Name of the arithmetic of experts at `bits`: dense, native (int4 of this package), int4, int8 or expanded."""
        if bits == FULL_BITS or self.dtype != torch.bfloat16:
            return "dense"
        if bits in self.quantized:
            shape, folder = self.checkpoint.architecture, self.quantized[bits]
            sizes = (shape.hidden_size, shape.intermediate_size)
            if not folder.affine or bits > 4:
                return "expanded"
            if self._native and native.supported(*sizes, folder.group_size):
                return "native"
            fits = all(kernels.int4_supported(kernels.CPU, n, k, folder.group_size) for n, k in (sizes, sizes[::-1]))
            return "int4" if fits else "expanded"
        return "int8"

    def nbytes(self, bits: int) -> int:
        """Bytes of memory that one expert at `bits` takes, the largest of them where alignment makes them differ."""
        if bits not in self._sizes:
            self.require([bits])
            self._sizes[bits] = self._measure(bits)
        return self._sizes[bits]

    def _measure(self, bits: int) -> int:
        shape, kernel = self.checkpoint.architecture, self.kernel(bits)
        if bits == FULL_BITS:
            every = product(*map(range, shape.plan_shape))
            direct = [found for layer, expert in every if (found := self._direct(layer, expert, bits))]
            largest = max((self._span(entries).nbytes for entries in direct), default=0)
            if len(direct) == shape.experts:
                return largest
            return max(largest, self._laid_out(bits, kernel))
        return self._laid_out(bits, kernel)

    def _laid_out(self, bits: int, kernel: str) -> int:
        """Bytes of an expert in its kernel's layout."""
        shape = self.checkpoint.architecture
        hidden, wide = shape.hidden_size, shape.intermediate_size
        if kernel in ("int4", "native"):
            group = self.quantized[bits].group_size
            first, second = 2 * wide * hidden // group * 2, hidden * wide // group * 2
            if kernel == "native":
                parts = [wide * hidden, first, first, hidden * wide // 2, second, second]
            else:
                parts = [wide * hidden, 2 * first, hidden * wide // 2, 2 * second]
        elif kernel == "expanded":
            parts = self.quantized[bits].expert_bytes
        elif kernel == "int8":
            parts = [2 * wide * hidden, 2 * wide * 2, hidden * wide, hidden * 2]
        else:
            parts = [hidden * wide * self.dtype.itemsize] * 3
        return aligned(sum(aligned(part, 64) for part in parts[:-1]) + parts[-1])

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
        if (layer, expert) not in self._checked and (entries := self._direct(layer, expert, bits)):
            for name, entry in zip(MATRICES, entries, strict=True):
                check_finite(tensors[name], entry)
            self._checked.add((layer, expert))
        kernel = self.kernel(bits)
        if kernel == "native":
            return NativeExpert(tensors)
        if kernel == "int4":
            return Int4Expert(tensors, self.quantized[bits].group_size, kernels.int4_matmul(kernels.CPU))
        if kernel == "expanded":
            return ExpandedExpert(tensors, bits)
        return Int8Expert(tensors) if kernel == "int8" else DenseExpert(tensors, self._native)

    def _direct(self, layer: int, expert: int, bits: int) -> list[Entry] | None:
        """Return where an expert lies in the checkpoint's own files, if its bytes there are those that compute."""
        if bits != FULL_BITS:
            return None
        stored = [self.checkpoint.stored(name) for name in self.checkpoint.expert_names(layer, expert)]
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
                w1, w2, w3 = (folder.matrix(layer, expert, name) for name in MATRICES)
                return _packed(w1, w2, w3) if kernel == "int4" else _interleaved(w1, w2, w3)
            if kernel == "expanded":
                return folder.tensors(layer, expert)
            return {name: folder.dequantized(layer, expert, name).to(self.dtype) for name in MATRICES}
        full = self.checkpoint.expert(layer, expert)
        if bits == FULL_BITS:
            return {name: weight.to(self.dtype) for name, weight in zip(MATRICES, full, strict=True)}
        w13, w13_scales = kernels.int8_rows(torch.cat((full[0], full[2])))
        codes, w2_scales = kernels.int8_rows(full[1])
        if kernel == "int8":
            return {"w13": w13, "w13_scales": w13_scales, "w2": codes, "w2_scales": w2_scales}
        first, third = (w13.to(self.dtype) * w13_scales.to(self.dtype).unsqueeze(1)).chunk(2)
        return {"w1": first, "w2": codes.to(self.dtype) * w2_scales.to(self.dtype).unsqueeze(1), "w3": third}


def _packed(w1: AffineMatrix, w2: AffineMatrix, w3: AffineMatrix) -> dict[str, torch.Tensor]:
    w13, w13_scales = kernels.pack_int4(kernels.stack_rows(w1, w3), kernels.CPU)
    packed, w2_scales = kernels.pack_int4(w2, kernels.CPU)
    return {"w13": w13, "w13_scales": w13_scales, "w2": packed, "w2_scales": w2_scales}


def _interleaved(w1: AffineMatrix, w2: AffineMatrix, w3: AffineMatrix) -> dict[str, torch.Tensor]:
    both = kernels.stack_rows(w1, w3)
    tensors = {"w13": native.interleave(both), "w13_scales": both.scales, "w13_zeros": both.zeros}
    return {**tensors, "w2": native.interleave(w2), "w2_scales": w2.scales, "w2_zeros": w2.zeros}


def expert_bytes(model: str | Path, quantized: Path, precisions: Iterable[int]) -> dict[int, int]:
    """Return bits -> bytes that an expert really takes in RAM: whole pages, in the layout of its bfloat16 kernel.

    Raises:
        UserError: the experts are damaged, belong to another model, or are not at hand at one of the precisions.
    """
    source = ExpertSource(
        Checkpoint(model), [QuantizedExperts(quantized)], torch.bfloat16, spill_folder(None, [quantized])
    )
    return {bits: source.nbytes(bits) for bits in precisions}
