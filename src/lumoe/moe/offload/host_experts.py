"""Experts in host memory that a device copies from: the slow tier of a machine with a GPU.

Each expert at each precision has storage of its own: page-aligned, in its kernel's layout, one contiguous copy away
from the device, and pinned, so that the copy needs no staging. torch's own pinned allocator rounds sizes up to a power
of two, which at Mixtral's scale would take half as much again; pages mapped and registered here take what they hold.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.kernels.torch_kernels import int4_matmul, int4_packed, int4_supported, pack_int4, stack_rows
from lumoe.moe.model.activation import Gated, swiglu
from lumoe.moe.model.expert import MATRICES, DenseExpert, Expert, Int4Expert
from lumoe.moe.offload.storage import PageBuffer, Place, aligned, lay_out, views
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.planning.shape import ModelShape
from lumoe.moe.quantization.folder import QuantizedExperts

# Called with layer, expert, bits and the tensors to fill.
Writer = Callable[[int, int, int, Mapping[str, torch.Tensor]], None]
# Called with (layer, expert, bits) and a number of bytes; returns memory and whether it holds the expert already.
Reserve = Callable[[tuple[int, int, int], int], tuple["HostMemory", bool]]
# Called with memory that is to be pinned; returns what undoes it, or None.
Pin = Callable[[torch.Tensor], Callable[[], object] | None]


class HostMemory(Protocol):
    """Memory that is given back with the last reference."""

    bytes: torch.Tensor


@dataclass(frozen=True, eq=False)
class HostCopy:
    """One expert in host memory."""

    memory: HostMemory
    places: tuple[Place, ...]
    nbytes: int

    @property
    def bytes(self) -> torch.Tensor:
        """The expert's bytes, uint8 `[nbytes]`."""
        return self.memory.bytes[: self.nbytes]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the expert's tensors as views of host memory."""
        return views(self.memory.bytes, self.places)


class HostExpert:
    """An expert that computes in host memory; its input comes from the device and its output goes there."""

    __slots__ = ("_expert",)

    def __init__(self, expert: Expert) -> None:
        self._expert = expert

    def __call__(self, hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
        return self._expert(hidden.cpu(), activation).to(hidden.device)


class DeviceExperts:
    """All experts of a model in host memory, laid out for a device when they are first asked for."""

    def __init__(
        self,
        shape: ModelShape,
        groups: Mapping[int, int],
        write: Writer,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        pin: Pin | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        """Prepare to hold experts; none is held before it is asked for.

        Args:
            groups: bits per weight (at most 4) -> weights that share a scale.
            write: fills an expert's tensors: w1, w2, w3 at 16 bits; w13, w13_scales, w2, w2_scales below.
            reserve: finds memory for an expert; by default pages of this process.

        Raises:
            UserError: the device's int4 kernel does not take matrices of these sizes.
        """
        self.shape, self.device, self.dtype = shape, device, dtype
        self._groups, self._write, self._pin = dict(groups), write, pin
        self._reserve = reserve or _own_pages
        hidden, wide = shape.hidden_size, shape.intermediate_size
        for bits, group in self._groups.items():
            fits = bits <= 4 and all(int4_supported(device, n, k, group) for n, k in ((wide, hidden), (hidden, wide)))
            if not fits or dtype != torch.bfloat16:
                raise UserError(
                    f"{device.type}: no kernel for {bits}-bit experts of widths {hidden} and {wide} in groups of "
                    f"{group} with {dtype} activations; quantise to 4 bits in groups of 64 and use bfloat16"
                )
        self._places = {bits: self._layout(bits) for bits in self.precisions}
        self._copies: dict[tuple[int, int, int], HostCopy] = {}
        self._lock = Lock()

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits per weight that a plan may ask for."""
        return tuple(sorted({*self._groups, FULL_BITS}))

    @property
    def stored_as(self) -> str:
        """Empty: a device computes from weights, whatever a checkpoint's format."""
        return ""

    def require(self, bits: Sequence[int]) -> None:
        """Raise UserError if experts at one of `bits` are not at hand."""
        for value in sorted({*bits} - {*self.precisions}):
            known = ", ".join(map(str, self.precisions))
            raise UserError(f"no experts at {value} bits on {self.device.type}; there are {known}")

    def nbytes(self, bits: int) -> int:
        """Bytes of memory that one expert at `bits` takes, on either tier."""
        self.require([bits])
        last = self._places[bits][-1]
        return aligned(last.at + torch.Size(last.shape).numel() * last.dtype.itemsize)

    def kernel(self, bits: int) -> str:
        """Name of the arithmetic of experts at `bits`: dense, or the device's int4."""
        return "dense" if bits == FULL_BITS else "int4"

    def record(self, layer: int, expert: int, bits: int) -> HostCopy:
        """Return the expert's copy in host memory, making it if need be."""
        key = (layer, expert, bits)
        with self._lock:
            if key not in self._copies:
                size = self.nbytes(bits)
                memory, filled = self._reserve(key, size)
                copy = HostCopy(memory, self._places[bits], size)
                if not filled:
                    self._write(layer, expert, bits, copy.tensors())
                undo = self._pin(copy.memory.bytes) if self._pin else None
                if undo is not None:
                    weakref.finalize(copy, undo)
                self._copies[key] = copy
            return self._copies[key]

    def build(self, layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> Expert:
        """Return the expert whose record was copied into `tensors`."""
        if bits == FULL_BITS:
            # This package's own kernels are the processor's.
            return DenseExpert(tensors, use_native=self.device.type == "cpu")
        return Int4Expert(tensors, self._groups[bits], int4_matmul(self.device))

    def on_host(self, layer: int, expert: int, bits: int) -> Expert:
        """Return the expert computing where it lies; only 16-bit weights are laid out alike on host and device."""
        if bits != FULL_BITS:
            raise ValueError(f"experts at {bits} bits are laid out for {self.device.type}")
        return HostExpert(DenseExpert(self.record(layer, expert, bits).tensors()))

    def _layout(self, bits: int) -> tuple[Place, ...]:
        hidden, wide = self.shape.hidden_size, self.shape.intermediate_size
        if bits == FULL_BITS:
            parts = [("w1", self.dtype, (wide, hidden)), ("w2", self.dtype, (hidden, wide))]
            return lay_out([*parts, ("w3", self.dtype, (wide, hidden))])
        group = self._groups[bits]
        first, second = int4_packed(self.device, 2 * wide, hidden), int4_packed(self.device, hidden, wide)
        return lay_out(
            [
                ("w13", first.dtype, first.shape),
                ("w13_scales", torch.bfloat16, (hidden // group, 2 * wide, 2)),
                ("w2", second.dtype, second.shape),
                ("w2_scales", torch.bfloat16, (wide // group, hidden, 2)),
            ]
        )


def _own_pages(key: tuple[int, int, int], nbytes: int) -> tuple[HostMemory, bool]:
    return PageBuffer(nbytes), False


def checkpoint_writer(checkpoint: Checkpoint, quantized: Sequence[QuantizedExperts], device: torch.device) -> Writer:
    """Return a writer of a checkpoint's experts and of its quantised ones."""
    folders = {folder.bits: folder for folder in quantized}

    def write(layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> None:
        if bits == FULL_BITS:
            for name, weight in zip(MATRICES, checkpoint.expert(layer, expert), strict=True):
                tensors[name].copy_(weight)
            return
        w1, w2, w3 = (folders[bits].matrix(layer, expert, name) for name in MATRICES)
        for name, matrix in (("w13", stack_rows(w1, w3)), ("w2", w2)):
            packed, scales = pack_int4(matrix, device)
            tensors[name].copy_(packed)
            tensors[f"{name}_scales"].copy_(scales)

    return write
