"""The C library's allocator, set for training on a CPU."""

from __future__ import annotations

import os

from pipelines.memory import MMAP_MAX, TRIM_THRESHOLD, set_malloc


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step; returns whether it will.

    By default it returns large blocks to the kernel, which must then find and zero the pages of
    activations and gradients again in every step. Does nothing where the environment configures
    glibc's allocator, or where the C library has no mallopt. See man 3 mallopt.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return set_malloc(MMAP_MAX, 0) and set_malloc(TRIM_THRESHOLD, -1)
