"""C++ kernels of the package: compiled once per machine, left out where they cannot be.

Every kernel has a counterpart in torch's operators, so that a compiler is never needed, only welcome.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lumoe.files import atomic_path

CHOICE = "LUMOE_NATIVE"  # set to 0 to run on torch's operators
_COMPILE_S = 120
log = logging.getLogger(__name__)


def load(source: Path, flags: Sequence[str]) -> ctypes.CDLL | None:
    """Return the compiled `source`, or None (and say why in the log) where it cannot be compiled or loaded."""
    if os.environ.get(CHOICE) == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.info("no C++ compiler: torch's operators stand in for %s", source.name)
        return None
    try:
        return ctypes.CDLL(str(_build(compiler, source, flags)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("torch's operators stand in for %s: %s", source.name, error)
        return None


def _build(compiler: str, source: Path, flags: Sequence[str]) -> Path:
    content = source.read_bytes()
    key = hashlib.sha256(content + repr((compiler, tuple(flags))).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumoe"
    target = folder / f"{source.stem}-{key}.so"
    if not target.is_file():
        with atomic_path(target) as temporary:
            part = temporary.with_suffix(".o")
            _run([compiler, *flags, "-c", str(source), "-o", str(part)])
            # No -fopenmp here: the runtime that torch has loaded is found when the library is.
            _run([compiler, "-shared", str(part), "-o", str(temporary)])
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)
