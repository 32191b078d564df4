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
from tempfile import TemporaryDirectory

from lumoe.errors import UserError
from lumoe.files import atomic_path

CHOICE = "LUMOE_NATIVE"  # set to 0 to run on torch's operators, to avx2 to leave wider instructions out
_COMPILE_S = 120
log = logging.getLogger(__name__)


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def load(sources: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL | None:
    """Return a compiled library, or None (and say why in the log) where it cannot be compiled or loaded.

    Args:
        sources: the file to compile, then those that it includes.
    """
    name = sources[0].name
    if os.environ.get(CHOICE) == "0":
        return None
    found = compiler()
    if found is None:
        log.info("no C++ compiler: torch's operators stand in for %s", name)
        return None
    try:
        return _load(found, sources, flags)
    except (OSError, subprocess.SubprocessError) as error:
        log.info("torch's operators stand in for %s compiled with %s: %s", name, flags[-1], error)
        return None


def _load(compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL:
    """Load the library from the cache, building it there first if need be, or where there is no cache, once for now."""
    content = b"".join(source.read_bytes() for source in sources)
    key = hashlib.sha256(content + repr((compiler, tuple(flags))).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumoe"
        target = folder / f"{sources[0].stem}-{key}.so"
        if not target.is_file():
            with atomic_path(target) as temporary:
                _build(compiler, flags, sources[0], temporary)
    except (UserError, RuntimeError) as error:  # no home, or one that cannot be written to
        log.info("%s is built for this process only: %s", sources[0].name, error)
        with TemporaryDirectory(prefix="lumoe-") as scratch:
            target = Path(scratch) / "kernels.so"
            _build(compiler, flags, sources[0], target)
            return ctypes.CDLL(str(target))
    return ctypes.CDLL(str(target))


def _build(compiler: str, flags: Sequence[str], source: Path, target: Path) -> None:
    part = target.with_suffix(".o")
    _run([compiler, *flags, "-c", str(source), "-o", str(part)])
    # No -fopenmp here: the runtime that torch has loaded is found when the library is.
    _run([compiler, "-shared", str(part), "-o", str(target)])
    part.unlink()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)
