"""Memory that was freed but that the C library keeps for later."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Hand free memory of the C library's heap back to the system, where it can (glibc).

    Experts lie in mappings of their own and go back at once; temporaries of packing and quantising do not.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
