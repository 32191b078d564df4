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
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch

from lumoe import compiled
from lumoe.machine import cpu_flags
from lumoe.moe.kernels import steps
from lumoe.resources import package_path

_SIMD = ("simd.h", "simd_avx2.h", "simd_avx512.h")
_SOURCES = {
    "experts": (
        "experts.cpp",
        "activations.h",
        "expand.h",
        "gate.h",
        "lanes.h",
        "layout.h",
        "tile.h",
        "together.h",
        "unpack.h",
        *_SIMD,
    ),
    "codes": ("codes.cpp", "activations.h", "gate.h", "lanes.h", "layout.h", "together.h"),
    "dense": ("dense.cpp", "gate.h", "lanes.h", "layout.h", "linear16.h", "together.h", *_SIMD),
    "attention": ("attention.cpp", "lanes.h", "layout.h", "linear16.h", "rms.h", *_SIMD),
    "norms": ("norms.cpp", "lanes.h", "layout.h", "rms.h"),
    "router": ("router.cpp", "lanes.h", "layout.h", "linear16.h", "rms.h", *_SIMD),
}
_NEEDED = ("avx2", "fma", "f16c")
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", *("-m" + name for name in _NEEDED))
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16")
_AVX512_FLAGS = ("-DLUMOE_AVX512", *("-m" + name.replace("_", "") for name in _AVX512))
log = logging.getLogger(__name__)


_NUMBER, _REAL, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
Arguments = Mapping[str, Sequence[Any]]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the kernels of weights of 8 bits and fewer, or None (and say why in the log) where there are none."""
    numbers = {
        "lumoe_expands": [],
        "lumoe_expert_scratch": [_NUMBER] * 3,
        "lumoe_affine_linear_scratch": [_NUMBER] * 3,
    }
    kernels = {
        "lumoe_experts": [_NUMBER, _POINTER, *[_NUMBER] * 2, *[_REAL] * 3, _POINTER],
        "lumoe_affine_linear": [*[_POINTER] * 2, *[_NUMBER] * 5, *[_POINTER] * 4],
    }
    found = _compiled("experts", kernels, numbers)
    if found is not None and found.lumoe_expands():
        found.lumoe_expand.argtypes = [_POINTER, *[_NUMBER] * 4, *[_POINTER] * 3]
        found.lumoe_expand.restype = None
    return found


@lru_cache(maxsize=1)
def dense_library() -> ctypes.CDLL | None:
    """Return the kernels of 16-bit experts and projections, or None where there are none."""
    kernels = {
        "lumoe_linear16": [*[_POINTER] * 2, *[_NUMBER] * 3, _POINTER],
        "lumoe_dense_experts": [_NUMBER, _POINTER, *[_NUMBER] * 2, *[_REAL] * 3, _POINTER],
    }
    return _compiled("dense", kernels, {"lumoe_dense_scratch": [_NUMBER] * 3})


@lru_cache(maxsize=1)
def attention_library() -> ctypes.CDLL | None:
    """Return the kernels of attention over paged keys and values, or None where there are none."""
    arguments = [
        _POINTER, _NUMBER, _POINTER, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER,
        _POINTER, *[_NUMBER] * 7,
    ]  # fmt: skip
    kernels: Arguments = {
        "lumoe_attend": arguments,
        "lumoe_attention_layer": [ctypes.POINTER(steps.AttentionLayer), ctypes.POINTER(steps.Step), _POINTER],
    }
    return _compiled("attention", kernels)


@lru_cache(maxsize=1)
def router_library() -> ctypes.CDLL | None:
    """Return the kernels that choose a token's experts and add up their outputs, or None where there are none."""
    kernels: Arguments = {
        "lumoe_route": [ctypes.POINTER(steps.Router), _NUMBER, *[_POINTER] * 4],
        "lumoe_group": [*[_NUMBER] * 3, *[_POINTER] * 4],
        "lumoe_weighted_sums": [*[_NUMBER] * 3, *[_POINTER] * 5],
    }
    return _compiled("router", kernels)


@lru_cache(maxsize=1)
def norms_library() -> ctypes.CDLL | None:
    """Return the kernel of the root mean square's norm, or None where there is none."""
    return _compiled("norms", {"lumoe_rms_norm": [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _REAL]})


@lru_cache(maxsize=1)
def codes_library() -> ctypes.CDLL | None:
    """Return the kernels of weights in a file's own codes, or None where there are none."""
    numbers = {"lumoe_coded_linear_scratch": [_NUMBER] * 3, "lumoe_coded_expert_scratch": [_NUMBER] * 3}
    kernels = {
        "lumoe_coded_linear": [*[_POINTER] * 2, *[_NUMBER] * 4, *[_POINTER] * 2],
        "lumoe_coded_experts": [_NUMBER, _POINTER, *[_NUMBER] * 2, *[_REAL] * 3, _POINTER],
        "lumoe_coded_expand": [_POINTER, *[_NUMBER] * 3, _POINTER],
    }
    return _compiled("codes", kernels, numbers)


@lru_cache(maxsize=1)
def expands() -> bool:
    """Whether this processor multiplies bfloat16 matrices so fast that expanding weights of few bits for it pays."""
    found = library()
    return found is not None and bool(found.lumoe_expands()) and "amx_bf16" in cpu_flags()


def _compiled(name: str, kernels: Arguments, numbers: Arguments | None = None) -> ctypes.CDLL | None:
    """Return the compiled sources of `name`, or None where they cannot be had.

    Args:
        kernels: functions that return nothing, and what they take.
        numbers: functions that return a whole number.
    """
    known = cpu_flags()
    if not known.issuperset(_NEEDED):
        log.info("no AVX2: %s runs on torch's kernels", name)
        return None
    wide = _AVX512_FLAGS if known.issuperset(_AVX512) and os.environ.get(compiled.CHOICE) != "avx2" else ()
    sources = [package_path("moe", "kernels", "csrc", file) for file in _SOURCES[name]]
    for flags in dict.fromkeys(((*_FLAGS, *wide), _FLAGS)):  # an old compiler may know AVX2 only
        found = compiled.load(sources, flags)
        if found is not None:
            for result, functions in ((None, kernels), (_NUMBER, numbers or {})):
                for function, arguments in functions.items():
                    called = getattr(found, function)
                    called.argtypes, called.restype = arguments, result
            return found
    return None


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
    """An expert as a kernel is told of it.

    Attributes:
        arguments: of its weights.
        widths: of its inputs and of what lies between its matrices, and what else all experts of a call share.
    """

    @property
    def arguments(self) -> tuple[int, ...]: ...

    @property
    def widths(self) -> tuple[int, ...]: ...


def run_together(
    kernel: Callable[..., None],
    scratch_of: Callable[..., int],
    experts: Sequence[Weights],
    ends: Sequence[int],
    hidden: torch.Tensor,
    output: torch.Tensor,
    gates: Sequence[Gate] | None = None,
) -> None:
    """Compute several experts of the same widths in one call.

    Args:
        kernel, scratch_of: `lumoe_experts` or `lumoe_coded_experts`, and what says how much scratch one expert takes.
        ends: where the tokens of each end, after a 0: expert i has rows `ends[i] ... ends[i + 1]`.
        hidden: bfloat16 `[tokens, hidden]`.
        output: of the same shape, contiguous; it is written to.
        gates: of each expert, all alike but for their biases; silu(gate) · up if None.
    """
    gates, widths = gates or [SWIGLU] * len(experts), experts[0].widths
    tokens, width = hidden.shape
    # One row that is repeated (a token's several experts) need not be copied.
    if tokens > len(experts) or hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    step, size, given, nbytes = hidden.stride(0) * hidden.element_size(), width * hidden.element_size(), array("q"), 0
    source, target = hidden.data_ptr(), output.data_ptr()
    scratch_bytes = {share: scratch_of(share, *widths) for share in {end - begin for begin, end in pairwise(ends)}}
    for expert, gate, begin, end in zip(experts, gates, ends, ends[1:], strict=False):
        places = source + begin * step, target + begin * size, end - begin
        given.extend(expert.arguments + gate[3:] + places)
        nbytes += scratch_bytes[end - begin]
    scratch = torch.empty(nbytes, dtype=torch.uint8)
    kernel(len(experts), given.buffer_info()[0], *widths, *gates[0][:3], scratch.data_ptr())
