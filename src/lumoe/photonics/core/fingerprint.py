"""Whether a tensor still holds what it held: by its bytes, since torch's version counters miss some ways to write.

They miss writes through ``.data``, under ``inference_mode`` and through another library's view of the memory. So every
byte is read: by `fingerprint.cpp`, or where it cannot be compiled and on other devices by torch's operators.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from functools import lru_cache

import torch
from torch import Tensor

from lumoe import compiled
from lumoe.photonics.core.readout import FLAGS, VECTORS
from lumoe.resources import package_path

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements that torch's operators take at once.
_PART = 1 << 20


def fingerprint(tensor: Tensor) -> tuple[Hashable, ...]:
    """Return what tells `tensor` from any other: shape, layout, type, device, and a hash of every bit."""
    tensor = tensor.detach()
    # In the order of the memory nothing has to be moved, whatever the order of the axes.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = tensor.permute(order).contiguous()
    library = _library() if dense.device.type == "cpu" else None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, _hash(dense, library)


def _hash(dense: Tensor, library: ctypes.CDLL | None) -> int:
    if library is None:
        parts = torch.split(dense.flatten(), _PART)
        return sum((_weighted_sum(part, number) for number, part in enumerate(parts)), 0)
    size = dense.numel() * dense.element_size()
    scratch = (ctypes.c_uint64 * max(1, -(-size // library.lumoe_fingerprint_block())))()
    return int(library.lumoe_fingerprint(dense.data_ptr(), size, scratch))


def _weighted_sum(part: Tensor, number: int) -> int:
    """Return the sum of all words times odd random numbers, modulo 2^64: a change of one word always shows."""
    words = part.view(_WORDS[part.element_size()]).long()
    place = torch.arange(len(words), device=part.device) + number * _PART
    mixed = place * -0x61C8864680B583EB
    mixed = (mixed ^ mixed >> 29) * -0x40A7B892E31B1A47
    return int((words * (mixed ^ mixed >> 32 | 1)).sum())


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    vectors = VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
    found = compiled.load([package_path("photonics", "core", "fingerprint.cpp")], (*FLAGS, *vectors))
    if found is not None:
        found.lumoe_fingerprint_block.argtypes = []
        found.lumoe_fingerprint_block.restype = ctypes.c_int64
        found.lumoe_fingerprint.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        found.lumoe_fingerprint.restype = ctypes.c_uint64
    return found
