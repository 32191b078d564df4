"""The compiled kernels of `csrc`: built once per machine, left out where they cannot be.

torch's int4 kernel and its bfloat16 product of one row reach about half of the memory bandwidth that decoding needs;
these reach most of it, and a whole expert is one call. They are optional: without a compiler, AVX2 or a shared OpenMP
runtime, everything runs on torch's kernels.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from lumoe import compiled
from lumoe.machine import cpu_flags
from lumoe.resources import package_path

_SOURCES = {
    "experts": ("experts.cpp", "activations.h", "gate.h", "layout.h", "together.h", "simd_avx2.h", "simd_avx512.h"),
    "codes": ("codes.cpp", "activations.h", "gate.h", "layout.h", "together.h"),
    "attention": ("attention.cpp", "layout.h"),
    "norms": ("norms.cpp", "activations.h", "layout.h"),
}
_NEEDED = ("avx2", "fma", "f16c")
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", *("-m" + name for name in _NEEDED))
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16")
_AVX512_FLAGS = ("-DLUMOE_AVX512", *("-m" + name.replace("_", "") for name in _AVX512))
log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the kernels of experts and projections, or None (and say why in the log) where there are none."""
    found = _compiled("experts")
    return None if found is None else _declare_experts(found)


@lru_cache(maxsize=1)
def attention_library() -> ctypes.CDLL | None:
    """Return the kernel of attention over paged keys and values, or None where there is none."""
    found = _compiled("attention")
    if found is None:
        return None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.lumoe_attend.argtypes = [
        pointer, number, pointer, number, pointer, pointer, number, number, pointer, number, pointer, pointer,
        *([number] * 7),
    ]  # fmt: skip
    found.lumoe_attend.restype = None
    return found


@lru_cache(maxsize=1)
def norms_library() -> ctypes.CDLL | None:
    """Return the kernel of the root mean square's norm, or None where there is none."""
    found = _compiled("norms")
    if found is None:
        return None
    number, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    found.lumoe_rms_norm.argtypes = [pointer, pointer, number, number, pointer, number, real]
    found.lumoe_rms_norm.restype = None
    return found


@lru_cache(maxsize=1)
def codes_library() -> ctypes.CDLL | None:
    """Return the kernels of weights in a file's own codes, or None where there are none."""
    found = _compiled("codes")
    if found is None:
        return None
    number, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    for name in ("lumoe_coded_linear_scratch", "lumoe_coded_expert_scratch"):
        function = getattr(found, name)
        function.argtypes, function.restype = [number] * 3, number
    for name, arguments in {
        "lumoe_coded_linear": [pointer] * 2 + [number] * 4 + [pointer] * 2,
        "lumoe_coded_experts": [number, pointer] + [number] * 2 + [real] * 3 + [pointer],
        "lumoe_coded_expand": [pointer] + [number] * 3 + [pointer],
    }.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


@lru_cache(maxsize=1)
def expands() -> bool:
    """Whether this processor multiplies bfloat16 matrices so fast that expanding int4 weights for it pays."""
    found = library()
    return found is not None and bool(found.lumoe_expands()) and "amx_bf16" in cpu_flags()


def _compiled(name: str) -> ctypes.CDLL | None:
    known = cpu_flags()
    if not known.issuperset(_NEEDED):
        log.info("no AVX2: %s runs on torch's kernels", name)
        return None
    wide = _AVX512_FLAGS if known.issuperset(_AVX512) and os.environ.get(compiled.CHOICE) != "avx2" else ()
    sources = [package_path("moe", "kernels", "csrc", file) for file in _SOURCES[name]]
    for flags in dict.fromkeys(((*_FLAGS, *wide), _FLAGS)):  # an old compiler may know AVX2 only
        found = compiled.load(sources, flags)
        if found is not None:
            return found
    return None


def _declare_experts(found: ctypes.CDLL) -> ctypes.CDLL:
    number, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    found.lumoe_expands.argtypes, found.lumoe_expands.restype = [], number
    for name in ("lumoe_expert_scratch", "lumoe_linear4_scratch"):
        function = getattr(found, name)
        function.argtypes, function.restype = [number] * 4, number
    for name, arguments in {
        "lumoe_experts": [number, pointer] + [number] * 3 + [real] * 3 + [pointer],
        "lumoe_linear4": [pointer] * 2 + [number] * 4 + [pointer] * 4,
        "lumoe_linear16": [pointer] * 2 + [number] * 2 + [pointer],
        "lumoe_expand": [pointer] + [number] * 3 + [pointer] * 3,
    }.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


class Gate(NamedTuple):
    """What an expert makes of its first two products: silu(gate) · up by default, see `gate.h`.

    Attributes:
        limit: gate and up are kept within it.
        alpha: the sigmoid's argument is this times gate.
        offset: added to up.
        gate_bias, up_bias: addresses of bfloat16 values that are added to the products; 0: there are none.
    """

    limit: float = math.inf
    alpha: float = 1.0
    offset: float = 0.0
    gate_bias: int = 0
    up_bias: int = 0


SWIGLU = Gate()


class Weights(Protocol):
    """What a kernel is told of one expert, as whole numbers."""

    @property
    def arguments(self) -> tuple[int, ...]: ...


def calls(
    experts: Sequence[Weights],
    ends: Sequence[int],
    hidden: torch.Tensor,
    output: torch.Tensor,
    gates: Sequence[Gate],
) -> array[int]:
    """Return what a kernel is told of experts that it computes together: their weights, and where their rows lie.

    Args:
        ends: where the tokens of each end, after a 0: expert i has rows `ends[i] ... ends[i + 1]`.
        hidden, output: contiguous, bfloat16 `[tokens, hidden]`.
        gates: of each expert; only their biases differ.
    """
    row, given = hidden.shape[1] * hidden.element_size(), array("q")
    for expert, gate, (begin, end) in zip(experts, gates, pairwise(ends), strict=True):
        places = hidden.data_ptr() + begin * row, output.data_ptr() + begin * row
        given.extend((*expert.arguments, gate.gate_bias, gate.up_bias, *places, end - begin))
    return given
