"""Memory straight from the system, which goes back to it when it is given up."""

from __future__ import annotations

import mmap


def anonymous(nbytes: int) -> mmap.mmap:
    """Return `nbytes` bytes of zeros that take memory as they are written to.

    Private to the process: pages of a shared mapping, Python's default, are a file's to the system: never huge,
    and stay when they are advised away.
    """
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
