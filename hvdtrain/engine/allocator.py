"""The C library's allocator, set for training on a CPU."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""mallopt's names for them in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next step; whether it will.

    By default it hands large blocks back to the kernel, and every step's activations and gradients
    are pages that the kernel must find and zero again. Does nothing where the environment sets
    glibc's allocator, and where the C library has no mallopt. See man 3 mallopt.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
