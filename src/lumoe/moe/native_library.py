"""The compiled kernels of `experts.cpp`: built once per machine, left out where they cannot be.

torch's int4 kernel and its bfloat16 product of one row reach about half of the memory bandwidth that decoding needs;
these reach most of it, and a whole expert is one call. They are optional: without a compiler, AVX2 or a shared OpenMP
runtime, everything runs on torch's kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lumoe.errors import UserError
from lumoe.files import atomic_path
from lumoe.resources import package_path

CHOICE = "LUMOE_NATIVE"  # set to 0 to run on torch's kernels, to avx2 to leave wider instructions out
_SOURCES = ("experts.cpp", "layout.h", "simd_avx2.h", "simd_avx512.h")
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-mavx2", "-mfma")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16")
_AVX512_FLAGS = ("-DLUMOE_AVX512", *("-m" + name.replace("_", "") for name in _AVX512))
_COMPILE_S = 120
log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None (and say why in the log) where there are none."""
    if os.environ.get(CHOICE) == "0":
        return None
    known = processor_flags()
    if not {"avx2", "fma"} <= known:
        log.info("no AVX2: experts run on torch's kernels")
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.info("no C++ compiler: experts run on torch's kernels")
        return None
    wide = _AVX512_FLAGS if known.issuperset(_AVX512) and os.environ.get(CHOICE) != "avx2" else ()
    for flags in dict.fromkeys(((*_FLAGS, *wide), _FLAGS)):  # an old compiler may know AVX2 only
        try:
            return _declare(_load(compiler, flags))
        except (OSError, subprocess.SubprocessError) as error:
            log.info("kernels not built with %s: %s", flags[-1], error)
    return None


def processor_flags() -> frozenset[str]:
    """Names of the processor's instruction sets, as Linux lists them; empty where it does not."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@lru_cache(maxsize=1)
def expands() -> bool:
    """Whether this processor multiplies bfloat16 matrices so fast that expanding int4 weights for it pays."""
    found = library()
    return found is not None and bool(found.lumoe_expands()) and "amx_bf16" in processor_flags()


def _load(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library from the cache, building it there first if need be, or where there is no cache, once for now."""
    sources = [package_path("moe", name) for name in _SOURCES]
    content = b"".join(source.read_bytes() for source in sources)
    key = hashlib.sha256(content + repr((compiler, flags)).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumoe"
        target = folder / f"experts-{key}.so"
        if not target.is_file():
            with atomic_path(target) as temporary:
                _build(compiler, flags, sources[0], temporary)
    except (UserError, RuntimeError) as error:  # no home, or one that cannot be written to
        log.info("kernels are built for this process only: %s", error)
        with TemporaryDirectory(prefix="lumoe-") as scratch:
            _build(compiler, flags, sources[0], Path(scratch) / "experts.so")
            return ctypes.CDLL(str(Path(scratch) / "experts.so"))
    return ctypes.CDLL(str(target))


def _build(compiler: str, flags: tuple[str, ...], source: Path, target: Path) -> None:
    part = target.with_suffix(".o")
    _run([compiler, *flags, "-c", str(source), "-o", str(part)])
    # No -fopenmp here: the runtime that torch has loaded is found when the library is.
    _run([compiler, "-shared", str(part), "-o", str(target)])
    part.unlink()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)


def _declare(found: ctypes.CDLL) -> ctypes.CDLL:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    found.lumoe_expands.argtypes, found.lumoe_expands.restype = [], number
    for name in ("lumoe_expert_scratch", "lumoe_linear4_scratch"):
        function = getattr(found, name)
        function.argtypes, function.restype = [number] * 4, number
    for name, arguments in {
        "lumoe_expert": [pointer] * 2 + [number] * 4 + [pointer] * 7,
        "lumoe_linear4": [pointer] * 2 + [number] * 4 + [pointer] * 4,
        "lumoe_linear16": [pointer] * 2 + [number] * 2 + [pointer],
        "lumoe_expand": [pointer] + [number] * 3 + [pointer] * 3,
    }.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found
