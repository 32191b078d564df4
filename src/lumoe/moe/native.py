"""The int4 kernel of `int4_avx2.cpp`: compiled once per machine, left out where it cannot be.

torch's int4 kernel reaches about half of the memory bandwidth that the weights need; this one runs a whole expert in
one call. It is optional: without a compiler, AVX2 or a shared OpenMP runtime, experts run on torch's kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from lumoe.files import atomic_path
from lumoe.moe.affine import AffineMatrix
from lumoe.resources import package_path

BLOCK = 64
FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-fopenmp", "-fPIC")
OFF = "LUMOE_NATIVE"  # set to 0 to run on torch's kernels
_COMPILE_S = 120
log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernel, or None (and say why in the log) where there is none."""
    if os.environ.get(OFF) == "0":
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        log.info("no AVX2: int4 experts run on torch's kernel")
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.info("no C++ compiler: int4 experts run on torch's kernel")
        return None
    try:
        return _declare(ctypes.CDLL(str(_build(compiler, package_path("moe", "int4_avx2.cpp")))))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("int4 experts run on torch's kernel: %s", error)
        return None


def supported(hidden: int, wide: int, group_size: int) -> bool:
    """Whether the kernel is there and takes experts of these widths."""
    return all(size % BLOCK == 0 for size in (hidden, wide, group_size)) and library() is not None


def interleave(matrix: AffineMatrix) -> torch.Tensor:
    """Lay codes out as the kernel reads them: uint8 `[outputs, inputs / 2]`, see `int4_avx2.cpp`."""
    rows, inputs = matrix.codes.shape
    quarters = matrix.codes.view(rows, inputs // BLOCK, 4, BLOCK // 4)
    low, high = quarters[:, :, 0] | (quarters[:, :, 1] << 4), quarters[:, :, 2] | (quarters[:, :, 3] << 4)
    return torch.stack((low, high), dim=-1).view(rows, inputs // 2)


class NativeInt4Expert:
    """Affine int4 weights in the kernel's layout, bfloat16 activations."""

    __slots__ = ("_arguments", "_call", "_scratch", "_tensors", "_widths")

    def __init__(self, tensors: Mapping[str, torch.Tensor], hidden: int, wide: int, group_size: int) -> None:
        found = library()
        assert found is not None
        self._call, self._scratch = found.lumoe_expert, found.lumoe_expert_scratch
        self._widths = (hidden, wide, group_size)
        names = ("w13", "w13_scales", "w13_zeros", "w2", "w2_scales", "w2_zeros")
        self._tensors = [tensors[name] for name in names]  # keeps their memory alive
        self._arguments = [tensor.data_ptr() for tensor in self._tensors]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        tokens = hidden.shape[0]
        scratch = torch.empty(self._scratch(tokens, *self._widths), dtype=torch.uint8)
        self._call(hidden.data_ptr(), output.data_ptr(), tokens, *self._widths, *self._arguments, scratch.data_ptr())
        return output


def _build(compiler: str, source: Path) -> Path:
    content = source.read_bytes()
    key = hashlib.sha256(content + repr((compiler, FLAGS)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumoe"
    target = folder / f"int4-{key}.so"
    if not target.is_file():
        with atomic_path(target) as temporary:
            part = temporary.with_suffix(".o")
            _run([compiler, *FLAGS, "-c", str(source), "-o", str(part)])
            # No -fopenmp here: the runtime that torch has loaded is found when the library is.
            _run([compiler, "-shared", str(part), "-o", str(temporary)])
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)


def _declare(found: ctypes.CDLL) -> ctypes.CDLL:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.lumoe_expert_scratch.argtypes, found.lumoe_expert_scratch.restype = [number] * 4, number
    found.lumoe_expert.argtypes = [pointer] * 2 + [number] * 4 + [pointer] * 7
    found.lumoe_expert.restype = None
    return found
