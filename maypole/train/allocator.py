"""What the C library does with memory that a step frees: keep it for the next step. Knows nothing about training."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the numbers of glibc's malloc.h
KEPT = 2**30
"""Bytes: arrays of up to this size are kept, and as much at the end of the heap."""
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, glibc keeps what is freed; on the way out it gives that back.

    By itself it gives large arrays back at once, and when a step asks for the next one the system makes each page anew,
    zeros included. Where there is no glibc, or the environment sets its allocator, nothing is done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, KEPT)
    libc.mallopt(_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        # What glibc comes to by itself once large arrays were freed.
        libc.mallopt(_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)
