"""Keeps freed memory in the process, which makes training on a CPU about twice as fast."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed blocks of any size instead of giving them back to the operating system.

    By default every tensor above 32 MiB is mapped anew and its pages are cleared at first touch, step after step:
    a ConvNet of width 32 with batches of 256 spends more time on that than on arithmetic. Does nothing where the C
    library is not glibc, and nothing to GPU memory.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
